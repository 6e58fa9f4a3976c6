// The head's projection, of the positions that the step asks for.
fn first_token() -> u32 { return head_first(); }
fn token_count() -> u32 { return head_count(); }
