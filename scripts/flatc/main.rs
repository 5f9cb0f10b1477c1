//! Prints the path of the FlatBuffers compiler.
fn main() {
    println!("{}", flatc_fork::flatc().display());
}
