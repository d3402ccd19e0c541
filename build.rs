fn main() {
    println!("cargo::rustc-check-cfg=cfg(sdrt_cuda)");
}
