//! The keys of LoRA files: which module they mean, as the file spells it, and which part of its change.

/// A part of what a LoRA says of one module. The letters of shapes: `o` outputs, `i` inputs, `r` rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Up,
    Down,
    /// The kernel between the two of a convolution: `[r,r,kh,kw]`.
    Mid,
    /// What the change is multiplied by, times the rank.
    Alpha,
    /// DoRA's magnitudes, of outputs `[o,1,...]` or of inputs `[1,i,...]`.
    DoraScale,
    /// DoRA's magnitudes as PEFT writes them: always of outputs.
    MagnitudeVector,
    HadaW1A,
    HadaW1B,
    HadaT1,
    HadaW2A,
    HadaW2B,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    /// What is added to the weight, as large as that.
    Diff,
    /// What is added to the bias.
    DiffB,
}

/// How keys end, by who wrote them.
const ENDS: [(&str, Part); 28] = [
    // kohya
    (".lora_up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_mid.weight", Part::Mid),
    (".alpha", Part::Alpha),
    // diffusers, text encoders before it used PEFT, attention processors before that
    (".lora.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    // LyCORIS
    (".dora_scale", Part::DoraScale),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_t1", Part::HadaT1),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffB),
    (".w_norm", Part::Diff),
    (".b_norm", Part::DiffB),
];

/// PEFT's; after them come the name of an adapter and `.weight`, or that alone, or nothing.
const PEFT: [(&str, Part); 3] =
    [(".lora_A", Part::Down), (".lora_B", Part::Up), (".lora_magnitude_vector", Part::MagnitudeVector)];

/// The module of a key and the part of its change; `None` for keys of no known kind.
pub fn split(key: &str) -> Option<(&str, Part)> {
    // PEFT's own files have this in front of the model's names.
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    let of_peft = PEFT.iter().find_map(|&(start, part)| {
        let (module, end) = key.split_once(start)?;
        let is_adapter = |name: &str| name.strip_prefix('.').is_some_and(|name| !name.contains('.'));
        let is_whole = match end.strip_suffix(".weight") {
            Some(adapter) => adapter.is_empty() || is_adapter(adapter),
            None => end.is_empty(),
        };
        is_whole.then_some((module, part))
    });
    let by_end = || ENDS.iter().find_map(|&(end, part)| Some((key.strip_suffix(end)?, part)));
    of_peft.or_else(by_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_writers_are_split() {
        for (key, module, part) in [
            ("lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in", Part::Down),
            ("lora_unet_conv_in.alpha", "lora_unet_conv_in", Part::Alpha),
            ("unet.a.to_q.lora.up.weight", "unet.a.to_q", Part::Up),
            ("unet.a.processor.to_q_lora.down.weight", "unet.a.processor.to_q", Part::Down),
            ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", Part::Up),
            ("base_model.model.a.to_q.lora_A.weight", "a.to_q", Part::Down),
            ("unet.a.to_q.lora_B.default_0.weight", "unet.a.to_q", Part::Up),
            ("a.lora_magnitude_vector", "a", Part::MagnitudeVector),
            ("a.lora_magnitude_vector.default.weight", "a", Part::MagnitudeVector),
            ("lora_unet_a.lokr_w1_a", "lora_unet_a", Part::LokrW1A),
            ("lora_unet_a.lokr_w1", "lora_unet_a", Part::LokrW1),
        ] {
            assert_eq!(split(key), Some((module, part)), "{key}");
        }
        for key in ["", "a.weight", "a.lora_A.b.c.weight", "a.lora_B.bias", "a.oft_blocks"] {
            assert_eq!(split(key), None, "{key}");
        }
    }
}
