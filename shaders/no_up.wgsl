// A projection of one weight.
fn up_unit(row: u32, unit: u32) -> Unit {
    return Unit();
}
