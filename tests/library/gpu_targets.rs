//! `tools/gpu_targets.sh`: for which chips `make demo` builds.

use std::process::Command;

use crate::common::root;

/// The script's output on a machine whose nvidia-smi prints `answer`.
fn targets(answer: &str) -> String {
    let output = Command::new("bash")
        .arg(root().join("tools/gpu_targets.sh"))
        // An exported function, which bash finds before any program.
        .env("BASH_FUNC_nvidia-smi%%", format!("() {{ cat <<'END'\n{answer}\nEND\n}}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn the_chips_that_are_there_are_built_for() {
    assert_eq!(targets("9.0"), "90a");
    assert_eq!(targets("8.6\n9.0\n9.0\n8.0"), "80,86,90a");
    assert_eq!(targets("12.0"), "ptx", "a chip without machine code");
    assert_eq!(targets("7.5"), "", "a chip that is too old");
    assert_eq!(targets("7.5\n8.9"), "89");
}

#[test]
fn a_sentence_in_place_of_a_capability_is_no_chip() {
    // What is printed then depends on the devices of the machine: all its GPUs could be, or none.
    for answer in [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that 1.0 is installed.",
        "Field \"compute_cap\" is not a valid field to query.",
        "[N/A]",
    ] {
        assert!(["", "all"].contains(&targets(answer).as_str()), "{answer}");
    }
}
