//! Terminals that take a PNG as it is, and how many columns and rows it is to fill.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// For kitty's graphics protocol, in pieces of at most 4096 bytes; `q=2` asks for no answer, which nobody would
/// read.
pub fn kitty(png: &[u8], (columns, rows): (usize, usize)) -> Vec<u8> {
    const PIECE: usize = 4096;
    let data = BASE64.encode(png);
    let pieces = data.len().div_ceil(PIECE);
    let mut out = Vec::new();
    for (i, piece) in data.as_bytes().chunks(PIECE).enumerate() {
        let about = if i == 0 { format!("a=T,f=100,q=2,c={columns},r={rows},") } else { String::new() };
        let more = u8::from(i + 1 < pieces);
        out.extend(format!("\x1b_G{about}m={more};").as_bytes());
        out.extend(piece);
        out.extend(b"\x1b\\");
    }
    out.push(b'\n');
    out
}

/// For iTerm2.
pub fn iterm(png: &[u8], (columns, rows): (usize, usize)) -> Vec<u8> {
    let size = png.len();
    let data = BASE64.encode(png);
    format!("\x1b]1337;File=inline=1;size={size};width={columns};height={rows}:{data}\x07\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kitty_gets_the_png_in_pieces() {
        let png: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        let drawn = String::from_utf8(kitty(&png, (10, 5))).unwrap();
        let pieces: Vec<&str> = drawn.trim_end().split_terminator("\x1b\\").collect();
        assert_eq!(pieces.len(), 4);
        let mut data = String::new();
        for (i, piece) in pieces.iter().enumerate() {
            let (about, piece) = piece.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap();
            assert_eq!(about, ["a=T,f=100,q=2,c=10,r=5,m=1", "m=1", "m=1", "m=0"][i]);
            assert!(piece.len() <= 4096);
            data += piece;
        }
        assert!(BASE64.decode(data).unwrap() == png);
    }

    #[test]
    fn iterm_gets_the_png() {
        let drawn = String::from_utf8(iterm(b"a picture", (40, 3))).unwrap();
        assert_eq!(drawn, "\x1b]1337;File=inline=1;size=9;width=40;height=3:YSBwaWN0dXJl\x07\n");
    }
}
