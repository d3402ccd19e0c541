//! Asks a terminal which graphics it knows.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::termios::{self, OptionalActions, SpecialCodeIndex};

use super::answer::Answer;

/// A picture of one pixel that kitty's protocol only looks at, then the primary device attributes, which
/// every terminal answers.
const QUESTION: &[u8] = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c";
/// Tenths of a second without a byte after which there is no answer.
const PATIENCE: u8 = 3;
/// No answer is longer.
const LONGEST: usize = 1024;
/// The attribute that means sixels.
const SIXEL: &str = "4";

/// What the terminal answers, up to the end of its attributes.
///
/// # Errors
/// No terminal, or one that cannot be set up; it is left as it was.
pub fn ask() -> io::Result<Vec<u8>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    // A process in the background would be stopped.
    if termios::tcgetpgrp(&terminal)? != rustix::process::getpgrp() {
        return Ok(Vec::new());
    }
    let before = termios::tcgetattr(&terminal)?;
    let mut raw = before.clone();
    raw.make_raw();
    raw.special_codes[SpecialCodeIndex::VMIN] = 0;
    raw.special_codes[SpecialCodeIndex::VTIME] = PATIENCE;
    termios::tcsetattr(&terminal, OptionalActions::Flush, &raw)?;
    let answer = exchange(&mut terminal);
    termios::tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    answer
}

fn exchange(terminal: &mut File) -> io::Result<Vec<u8>> {
    terminal.write_all(QUESTION)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < LONGEST && terminal.read(&mut byte)? == 1 {
        answer.push(byte[0]);
        if byte == *b"c" && attributes(&answer).is_some() {
            break;
        }
    }
    Ok(answer)
}

pub fn read(answer: &[u8]) -> Answer {
    let kitty =
        answer.windows(5).any(|part| part == b"\x1b_Gi=") && answer.windows(3).any(|part| part == b";OK");
    let sixel = attributes(answer).is_some_and(|list| list.split(';').any(|attribute| attribute == SIXEL));
    Answer { kitty, sixel }
}

/// The list in `ESC [ ? 62 ; 4 ; 22 c`.
fn attributes(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let (_, list) = text.rsplit_once("\x1b[?")?;
    Some(list.split_once('c')?.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        for (answer, kitty, sixel) in [
            (&b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c"[..], true, false),
            (b"\x1b[?62;4;22c", false, true),
            (b"\x1b[?64;14;22c", false, false),
            (b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\\x1b[?62;4c", false, true),
            (b"\x1b[?62;4", false, false),
            (b"", false, false),
            (b"\xff\x1b[?c", false, false),
        ] {
            assert_eq!(read(answer), Answer { kitty, sixel }, "{answer:?}");
        }
    }
}
