//! Pictures in a terminal: in its own graphics where it has some, else in half blocks of colour.

mod answer;
mod blocks;
mod inline;
#[cfg(unix)]
mod query;
mod shrink;
mod sixel;

use std::env;
use std::io::{self, IsTerminal};

use self::answer::Answer;
use self::shrink::shrink;
use super::Format;
use crate::pipeline::Picture;

/// How a terminal is told what to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// Graphics protocol of kitty, also of Ghostty, Konsole and WezTerm.
    Kitty,
    /// Inline images of iTerm2.
    ITerm,
    /// Sixels of the VT340, in xterm, foot, Windows Terminal and others.
    Sixel,
    /// U+2580, the upper half of a cell in one colour and the lower half in another.
    Blocks { true_colour: bool },
}

/// A terminal that stdout leads to.
#[derive(Clone, Debug)]
pub struct Terminal {
    protocol: Protocol,
    /// Cells.
    columns: usize,
    rows: usize,
    /// Pixels of a cell.
    cell: (usize, usize),
}

/// A cell where the terminal does not tell.
const USUAL_CELL: (usize, usize) = (8, 16);
/// Where the terminal does not tell its size.
const USUAL_SIZE: (usize, usize) = (80, 24);
/// Rows that stay free for the prompt of the shell.
const ROWS_BELOW: usize = 2;

/// Terminals, by `TERM`, that would print the question.
const NEVER_ASKED: [&str; 3] = ["", "dumb", "linux"];

impl Terminal {
    /// The terminal of stdout; nothing where that leads elsewhere. Asks the terminal what it can, and waits a
    /// moment for the answer.
    pub fn of_stdout() -> Option<Self> {
        if !io::stdout().is_terminal() {
            return None;
        }
        let protocol = by_name(|name| env::var(name).unwrap_or_default()).unwrap_or_else(|| {
            let term = env::var("TERM").unwrap_or_default();
            let answer = if NEVER_ASKED.contains(&term.as_str()) { Answer::default() } else { answer() };
            let true_colour = matches!(env::var("COLORTERM").as_deref(), Ok("truecolor" | "24bit"));
            match answer {
                Answer { kitty: true, .. } => Protocol::Kitty,
                Answer { sixel: true, .. } => Protocol::Sixel,
                _ => Protocol::Blocks { true_colour },
            }
        });
        let (columns, rows, cell) = size();
        Some(Terminal { protocol, columns, rows, cell })
    }

    /// What to print for the picture to appear, no larger than it is and than the window.
    pub fn draw(&self, picture: &Picture) -> Vec<u8> {
        match self.protocol {
            Protocol::Kitty => inline::kitty(&png(picture), self.cells(picture)),
            Protocol::ITerm => inline::iterm(&png(picture), self.cells(picture)),
            Protocol::Sixel => {
                let (columns, rows) = self.window();
                sixel::draw(&shrink(picture, columns * self.cell.0, rows * self.cell.1))
            }
            Protocol::Blocks { true_colour } => {
                let (columns, rows) = self.window();
                blocks::draw(&shrink(picture, columns, 2 * rows), true_colour)
            }
        }
    }

    /// Cells that a picture may take.
    fn window(&self) -> (usize, usize) {
        (self.columns.max(1), self.rows.saturating_sub(ROWS_BELOW).max(1))
    }

    /// Cells that a picture does take.
    fn cells(&self, picture: &Picture) -> (usize, usize) {
        let (columns, rows) = self.window();
        let (width, height) =
            shrink::fit((picture.width, picture.height), columns * self.cell.0, rows * self.cell.1);
        (width.div_ceil(self.cell.0), height.div_ceil(self.cell.1))
    }
}

/// A terminal that has no answer for its best graphics, but says who it is.
fn by_name(variable: impl Fn(&str) -> String) -> Option<Protocol> {
    let iterm = variable("TERM_PROGRAM") == "iTerm.app" || variable("LC_TERMINAL") == "iTerm2";
    // Inside of tmux and screen, these names are those of the terminal around, which does not see it all.
    let inside = !variable("TMUX").is_empty() || variable("TERM").starts_with("screen");
    (iterm && !inside).then_some(Protocol::ITerm)
}

#[cfg(unix)]
fn answer() -> Answer {
    query::ask().map(|bytes| query::read(&bytes)).unwrap_or_default()
}

#[cfg(not(unix))]
fn answer() -> Answer {
    Answer::default()
}

/// Columns, rows and the pixels of a cell.
fn size() -> (usize, usize, (usize, usize)) {
    #[cfg(unix)]
    if let Ok(window) = rustix::termios::tcgetwinsize(io::stdout()) {
        let [columns, rows, width, height] =
            [window.ws_col, window.ws_row, window.ws_xpixel, window.ws_ypixel].map(usize::from);
        if columns > 0 && rows > 0 {
            let cell = (width / columns, height / rows);
            return (columns, rows, if cell.0 > 0 && cell.1 > 0 { cell } else { USUAL_CELL });
        }
    }
    (USUAL_SIZE.0, USUAL_SIZE.1, USUAL_CELL)
}

fn png(picture: &Picture) -> Vec<u8> {
    Format::Png.encode(picture, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Picture {
        let rgb = (0..3 * width * height).map(|i| (i * 97 % 251) as u8).collect();
        Picture { width, height, rgb, seed: 0 }
    }

    fn terminal(protocol: Protocol) -> Terminal {
        Terminal { protocol, columns: 40, rows: 12, cell: (10, 20) }
    }

    #[test]
    fn a_picture_is_as_large_as_it_is_or_as_the_window() {
        let cells = |width, height| terminal(Protocol::Kitty).cells(&picture(width, height));
        assert_eq!(cells(100, 100), (10, 5));
        assert_eq!(cells(101, 99), (11, 5));
        assert_eq!(cells(800, 100), (40, 3));
        assert_eq!(cells(800, 800), (20, 10));
    }

    #[test]
    fn every_picture_fits_every_window() {
        let protocols = [
            Protocol::Kitty,
            Protocol::ITerm,
            Protocol::Sixel,
            Protocol::Blocks { true_colour: true },
            Protocol::Blocks { true_colour: false },
        ];
        for (width, height) in [(1, 1), (8, 2000), (2000, 8), (64, 64), (7, 13)] {
            for (columns, rows) in [(1, 1), (80, 24), (3, 200), (500, 2)] {
                for protocol in protocols {
                    let terminal = Terminal { columns, rows, ..terminal(protocol) };
                    assert!(terminal.draw(&picture(width, height)).ends_with(b"\n"));
                    let cells = terminal.cells(&picture(width, height));
                    assert!((1..=columns).contains(&cells.0) && (1..=rows).contains(&cells.1), "{cells:?}");
                }
            }
        }
    }

    #[test]
    fn terminals_say_who_they_are() {
        let by = |variables: &[(&str, &str)]| {
            by_name(|name| variables.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v).to_string())
        };
        assert_eq!(by(&[("TERM_PROGRAM", "iTerm.app")]), Some(Protocol::ITerm));
        assert_eq!(by(&[("LC_TERMINAL", "iTerm2"), ("TERM", "xterm-256color")]), Some(Protocol::ITerm));
        assert_eq!(by(&[("TERM_PROGRAM", "iTerm.app"), ("TMUX", "/tmp/tmux")]), None);
        assert_eq!(by(&[("TERM", "xterm")]), None);
    }
}
