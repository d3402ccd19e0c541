//! What A1111 does with a prompt beyond weights, and sdrt does not.

/// A sentence for each construct in a prompt that would act in A1111 and is text here.
pub(super) fn unsupported(text: &str) -> Vec<String> {
    let mut found: Vec<&str> = Vec::new();
    if words(text).any(|word| word == "AND") {
        found.push("AND, which composes prompts,");
    }
    let (scheduled, alternating) = in_square_brackets(text);
    if scheduled {
        found.push("[from:to:when], which changes the prompt during the steps,");
    }
    if alternating {
        found.push("[a|b], which changes the prompt at every step,");
    }
    if text.contains("<hypernet:") {
        found.push("<hypernet:...>");
    }
    found.into_iter().map(|construct| format!("{construct} is not supported; it is read as text")).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Whether there is a `[...:number]`, and a `[...|...]`.
fn in_square_brackets(text: &str) -> (bool, bool) {
    let (mut scheduled, mut alternating) = (false, false);
    // Of each open bracket: what it is, where its last colon ends, whether it has a bar.
    let mut open: Vec<(char, Option<usize>, bool)> = Vec::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match (c, open.last_mut()) {
            ('\\', _) => escaped = true,
            ('(' | '[', _) => open.push((c, None, false)),
            (':', Some((_, colon, _))) => *colon = Some(at + 1),
            ('|', Some((_, _, bar))) => *bar = true,
            (')', Some(('(', ..))) => drop(open.pop()),
            (']', Some(&mut ('[', colon, bar))) => {
                let when = colon.and_then(|colon| text[colon..at].trim().parse().ok());
                scheduled |= when.is_some_and(f64::is_finite);
                alternating |= bar;
                open.pop();
            }
            _ => {}
        }
    }
    (scheduled, alternating)
}
