//! `xylem serve`: a static server for the page and its bundle.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_RANGE, RANGE};
use axum::http::{HeaderName, HeaderValue, Method, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

/// Unless a port is asked for, the first free one of these.
const PORTS: std::ops::Range<u16> = 8080..8100;

/// Serve a folder over HTTP: the page, or a bundle. Ranges, types and cache headers are as a page needs them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The port; 0 takes any free one. Unless given, the first free one from 8080 on.
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The address to listen on; anything but loopback lets other machines in.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The origin of a page elsewhere that may open the bundle here with `?model=ADDRESS`, for instance http://localhost:8080; `*`
    /// for any.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Option<HeaderValue>,
}

/// Runs the subcommand until it is interrupted.
pub fn run(args: &Args) -> Result<()> {
    if !args.dir.is_dir() {
        bail!("{} is no folder", args.dir.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = listen(args).await?;
        let address = listener.local_addr()?;
        super::print_line(format!("Serving {} at http://{address}/ (Ctrl-C ends it)", args.dir.display()))?;
        let stop = async {
            let _ = tokio::signal::ctrl_c().await; // without signals it serves until it is killed
        };
        // At once: a client that stalls would hold up a graceful end for ever.
        tokio::select! {
            served = axum::serve(listener, router(args)) => Ok(served?),
            () = stop => Ok(()),
        }
    })
}

async fn listen(args: &Args) -> Result<tokio::net::TcpListener> {
    let bind = async |port| tokio::net::TcpListener::bind(SocketAddr::new(args.host, port)).await;
    if let Some(port) = args.port {
        return bind(port).await.with_context(|| format!("port {port} of {}", args.host));
    }
    for port in PORTS {
        match bind(port).await {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e).with_context(|| format!("port {port} of {}", args.host)),
        }
    }
    bail!("the ports from {} to {} are all taken; name another with --port", PORTS.start, PORTS.end - 1)
}

fn router(args: &Args) -> Router {
    let files = ServeDir::new(&args.dir);
    // Files keep their names when they change, so everything is asked about again, but for the shards: those are
    // large, and readers check their hashes.
    let cache = |response: &Response<_>| {
        let shard = response.headers().get("content-type").is_some_and(|t| t == "application/octet-stream");
        let value = if shard { "public, max-age=86400" } else { "no-cache" };
        Some(HeaderValue::from_static(value))
    };
    // Threads share memory in isolated pages alone.
    let isolated =
        [("cross-origin-opener-policy", "same-origin"), ("cross-origin-embedder-policy", "require-corp")];
    let header = |(name, value)| {
        SetResponseHeaderLayer::overriding(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let [opener, embedder] = isolated.map(header);
    let cache = SetResponseHeaderLayer::overriding(CACHE_CONTROL, cache);
    let cors = args.allow_origin.clone().map(|origin| {
        let origin = if origin == "*" { AllowOrigin::any() } else { AllowOrigin::exact(origin) };
        let cors = CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::HEAD]);
        cors.allow_headers([RANGE]).expose_headers([CONTENT_RANGE])
    });
    let router = Router::new().fallback_service(files).layer(cache).layer(opener).layer(embedder);
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}
