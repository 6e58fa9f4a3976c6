// A projection of all the step's tokens.
fn first_token() -> u32 { return 0u; }
fn token_count() -> u32 { return step_tokens(); }
