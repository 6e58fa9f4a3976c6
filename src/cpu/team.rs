//! The threads that share the work of one operation.
//!
//! A step has some two hundred operations of ten microseconds: so a thread that has nothing to do looks for more for a while before
//! it sleeps, and to hand work on takes a fraction of a microsecond.

use std::marker::PhantomData;

#[cfg(feature = "threads")]
pub use crew::{Aside, aside, join, recruit};
#[cfg(any(feature = "native", feature = "threads"))]
pub use crew::{run, threads};

/// The threads that work.
#[cfg(not(any(feature = "native", feature = "threads")))]
pub fn threads() -> usize {
    1
}

/// Runs `piece` for each of `0..pieces`.
#[cfg(not(any(feature = "native", feature = "threads")))]
pub fn run(pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
    (0..pieces).for_each(piece);
}

/// Runs `chunk` for each chunk of `size` values, with its number; the last one may be shorter.
pub fn chunks(all: &mut [f32], size: usize, chunk: &(impl Fn(usize, &mut [f32]) + Sync)) {
    let shared = Shared::new(all);
    run(shared.len.div_ceil(size), &|i| {
        // SAFETY: each number comes once, and chunks do not overlap.
        let values = unsafe { shared.slice(i * size, size.min(shared.len - i * size)) };
        chunk(i, values);
    });
}

/// Values of which each piece of work writes some.
#[derive(Debug)]
pub struct Shared<'a> {
    first: *mut f32,
    len: usize,
    lent: PhantomData<&'a mut [f32]>,
}

// SAFETY: the values are reached through `Shared::slice` alone, whose callers share none.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Lends `values`.
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), lent: PhantomData }
    }

    /// Values `start..start + len`.
    ///
    /// # Safety
    /// While they are in use nobody asks for any of them again.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the caller answers for it that no two overlap")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: these values were lent, and are the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}

#[cfg(any(feature = "native", feature = "threads"))]
mod crew {
    use std::cell::UnsafeCell;
    use std::hint::spin_loop;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
    use std::thread::{self, Thread};

    /// So often a thread looks for work before it sleeps: some 100 µs.
    const LOOKS: u32 = 4000;
    /// So often the one that waits for others looks before it lets them have its core.
    const PATIENCE: u32 = 2000;

    type Piece<'a> = dyn Fn(usize) + Sync + 'a;
    type Work = Box<dyn FnOnce() + Send>;

    /// What is to be done: read only by who has claimed a piece, written only when all pieces are done.
    struct Job(UnsafeCell<Option<&'static Piece<'static>>>);

    // SAFETY: see `Team::claim` and `Team::run`.
    unsafe impl Sync for Job {}

    /// A worker that may sleep.
    struct Worker {
        thread: OnceLock<Thread>,
        asleep: AtomicBool,
    }

    struct Team {
        workers: Vec<Worker>,
        /// Held by who hands out work.
        turn: Mutex<()>,
        /// The number of the job in the upper half, and in the lower one how many of its pieces nobody has claimed.
        left: AtomicU64,
        done: AtomicUsize,
        panicked: AtomicBool,
        job: Job,
        /// Long work for whoever has no pieces to do, and whether there is some.
        aside: Mutex<Option<Work>>,
        waiting: AtomicBool,
    }

    static TEAM: OnceLock<Team> = OnceLock::new();

    /// The threads that work, with the one that asks.
    pub fn threads() -> usize {
        team().map_or(1, |team| team.workers.len() + 1)
    }

    /// Runs `piece` for each of `0..pieces`, on this thread and others. While others are busy with somebody else's work,
    /// on this thread alone.
    ///
    /// # Panics
    /// If a piece does.
    pub fn run(pieces: usize, piece: &Piece<'_>) {
        let Some(team) = team().filter(|team| pieces > 1 && !team.workers.is_empty()) else {
            return (0..pieces).for_each(piece);
        };
        let turn = match team.turn.try_lock() {
            Ok(turn) => turn,
            // When a piece panics the others are done all the same.
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return (0..pieces).for_each(piece),
        };
        team.run(pieces, piece);
        drop(turn);
    }

    /// The team, which starts at the first call: as many threads as other work of this process gets.
    #[cfg(feature = "native")]
    fn team() -> Option<&'static Team> {
        static STARTED: OnceLock<()> = OnceLock::new();
        let team = TEAM.get_or_init(|| Team::new(rayon::current_num_threads().saturating_sub(1)));
        STARTED.get_or_init(|| {
            for worker in &team.workers {
                // If none can be started the others do its work.
                let _ = thread::Builder::new().name("xylem".into()).spawn(|| team.work(worker));
            }
        });
        Some(team)
    }

    #[cfg(not(feature = "native"))]
    fn team() -> Option<&'static Team> {
        TEAM.get()
    }

    /// Makes places for `workers` threads beside the one that asks; only the first call does. A place that nobody has taken
    /// yet costs nothing.
    #[cfg(feature = "threads")]
    pub fn recruit(workers: usize) {
        TEAM.get_or_init(|| Team::new(workers));
    }

    /// Work that another thread does meanwhile.
    #[cfg(feature = "threads")]
    #[derive(Debug)]
    pub struct Aside<T>(std::sync::Arc<Mutex<Option<T>>>);

    /// Has a thread of the team do `work`: one that takes long, such as building a table. Steps go on meanwhile, with the other threads.
    #[cfg(feature = "threads")]
    pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Aside<T> {
        let result = std::sync::Arc::new(Mutex::new(None));
        let kept = result.clone();
        let work: Work = Box::new(move || *lock(&kept) = Some(work()));
        match TEAM.get() {
            Some(team) => team.set_aside(work),
            None => work(),
        }
        Aside(result)
    }

    #[cfg(feature = "threads")]
    impl<T> Aside<T> {
        /// What the work gave, once it is done.
        pub fn take(&self) -> Option<T> {
            lock(&self.0).take()
        }

        /// Does the work here, if no thread has begun it.
        pub fn hurry(&self) {
            if let Some(work) = TEAM.get().and_then(Team::take_aside) {
                work();
            }
        }
    }

    /// What is locked here is whole at any time.
    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place `worker` in the team, and stays. Where threads are the host's to start, each of them calls this.
    #[cfg(feature = "threads")]
    pub fn join(worker: usize) {
        if let Some((team, worker)) = TEAM.get().and_then(|team| Some((team, team.workers.get(worker)?))) {
            team.work(worker);
        }
    }

    /// Counts a piece as done, also one that panics.
    struct Done<'a>(&'a Team);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.panicked.store(true, Relaxed);
            }
            self.0.done.fetch_add(1, Release);
        }
    }

    impl Team {
        fn new(workers: usize) -> Self {
            let worker = |_| Worker { thread: OnceLock::new(), asleep: AtomicBool::new(false) };
            Self {
                workers: (0..workers).map(worker).collect(),
                turn: Mutex::new(()),
                left: AtomicU64::new(0),
                done: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
                job: Job(UnsafeCell::new(None)),
                aside: Mutex::new(None),
                waiting: AtomicBool::new(false),
            }
        }

        /// What waited already is done here.
        #[cfg(any(test, feature = "threads"))]
        fn set_aside(&self, work: Work) {
            let before = {
                let mut aside = lock(&self.aside);
                self.waiting.store(true, SeqCst);
                aside.replace(work)
            };
            self.wake();
            if let Some(before) = before {
                before();
            }
        }

        fn take_aside(&self) -> Option<Work> {
            let mut aside = lock(&self.aside);
            self.waiting.store(false, SeqCst);
            aside.take()
        }

        fn wake(&self) {
            for worker in &self.workers {
                // Both sides of this are sequentially consistent: a worker sees the work, or is seen asleep.
                if worker.asleep.load(SeqCst)
                    && let Some(thread) = worker.thread.get()
                {
                    thread.unpark();
                }
            }
        }

        /// Called by the holder of the turn.
        fn run(&self, pieces: usize, piece: &Piece<'_>) {
            // SAFETY: nobody calls it after this function's end, which waits for all pieces.
            let piece = unsafe { std::mem::transmute::<&Piece<'_>, &'static Piece<'static>>(piece) };
            // SAFETY: all pieces of the job before are done, and no claim succeeds before the store below.
            unsafe { *self.job.0.get() = Some(piece) };
            self.done.store(0, Relaxed);
            self.panicked.store(false, Relaxed);
            let number = (self.left.load(Relaxed) >> 32).wrapping_add(1);
            self.left.store(number << 32 | pieces as u64, SeqCst);
            self.wake();
            // Waits even if a piece panics here.
            let wait = Wait { team: self, pieces };
            while self.claim() {}
            drop(wait);
            assert!(!self.panicked.load(Relaxed), "a part of an operation panicked on another thread");
        }

        /// Does one piece; whether there was one.
        fn claim(&self) -> bool {
            let one_less = |left: u64| (left as u32 > 0).then(|| left - 1);
            let Ok(left) = self.left.fetch_update(Acquire, Relaxed, one_less) else {
                return false;
            };
            // SAFETY: the job of this number is not replaced before this piece is done.
            let piece = unsafe { *self.job.0.get() };
            let done = Done(self);
            piece.expect("work is handed out after it was written down")(left as u32 as usize - 1);
            drop(done);
            true
        }

        fn work(&self, worker: &Worker) -> ! {
            worker.thread.get_or_init(thread::current);
            loop {
                let mut looks = 0;
                while looks < LOOKS {
                    if self.claim() {
                        looks = 0;
                    } else if self.waiting.load(Relaxed)
                        && let Some(work) = self.take_aside()
                    {
                        work();
                    } else {
                        looks += 1;
                        spin_loop();
                    }
                }
                worker.asleep.store(true, SeqCst);
                while self.left.load(SeqCst) as u32 == 0 && !self.waiting.load(SeqCst) {
                    thread::park();
                }
                worker.asleep.store(false, Relaxed);
            }
        }
    }

    /// Waits for all pieces when it goes.
    struct Wait<'a> {
        team: &'a Team,
        pieces: usize,
    }

    impl Drop for Wait<'_> {
        fn drop(&mut self) {
            // Pieces that nobody takes up: this thread panicked in one.
            while self.team.claim() {}
            let mut looks = 0;
            while self.team.done.load(Acquire) < self.pieces {
                looks += 1;
                if looks % PATIENCE == 0 {
                    thread::yield_now();
                } else {
                    spin_loop();
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_piece_is_run_once() {
            for round in 0..3000 {
                let pieces = round % 19;
                let runs: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                run(pieces, &|piece| {
                    runs[piece].fetch_add(1, Relaxed);
                    if piece == 3 {
                        // Work in work is done at once.
                        run(2, &|_| {
                            runs[3].fetch_add(1, Relaxed);
                        });
                    }
                });
                for (piece, runs) in runs.iter().enumerate() {
                    assert_eq!(runs.load(Relaxed), if piece == 3 { 3 } else { 1 });
                }
                if round % 1000 == 0 {
                    // Until all sleep.
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }

        #[test]
        fn long_work_is_done_beside_steps() {
            let team = team().filter(|team| !team.workers.is_empty());
            let Some(team) = team else { return };
            for round in 0..200 {
                if round % 50 == 0 {
                    thread::sleep(std::time::Duration::from_millis(5));
                }
                let (sender, receiver) = std::sync::mpsc::channel();
                let asked = thread::current().id();
                team.set_aside(Box::new(move || sender.send(thread::current().id()).unwrap()));
                let sum = AtomicUsize::new(0);
                run(10, &|piece| {
                    sum.fetch_add(piece, Relaxed);
                });
                assert_eq!(sum.into_inner(), 45);
                assert_ne!(receiver.recv().unwrap(), asked);
            }
            assert!(team.take_aside().is_none());
        }

        #[test]
        fn several_may_ask_at_once() {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            let sum = AtomicUsize::new(0);
                            run(10, &|piece| {
                                sum.fetch_add(piece, Relaxed);
                            });
                            assert_eq!(sum.into_inner(), 45);
                        }
                    });
                }
            });
        }
    }
}
