//! From the keys of the original code bases (CompVis, Stability AI, OpenCLIP) to those of diffusers and
//! transformers, one tensor at a time.

use crate::weights::component::Part;

/// Where a tensor of a single file belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub component: &'static str,
    /// In the layout of diffusers or transformers.
    pub key: String,
    pub part: Part,
}

/// The blocks of OpenCLIP's ViT-H; Stable Diffusion 2 is trained without the last.
const UNUSED_BLOCK_OF_H: &str = "23";

/// Where the levels of a U-Net end, whose original keys count its blocks through.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    /// The blocks of the way down that are a downsampler, in ascending order.
    downsamplers: Vec<usize>,
    /// The blocks of the way up that end with an upsampler, in ascending order.
    upsamplers: Vec<usize>,
}

impl Levels {
    /// The levels of Stable Diffusion's own U-Nets: two resnets each, and one more in the way up.
    pub fn regular() -> Self {
        Levels { downsamplers: vec![3, 6, 9], upsamplers: vec![2, 5, 8] }
    }

    /// The levels of the U-Net in a file with such keys.
    pub fn of<'a>(keys: impl Iterator<Item = &'a str>) -> Self {
        let [mut downsamplers, mut upsamplers] = [Vec::new(), Vec::new()];
        for key in keys.filter_map(|key| key.strip_prefix(UNET)) {
            let block = |way: &str| {
                let (block, rest) = number(key.strip_prefix(way)?)?;
                Some((block, number(rest)?.1))
            };
            match (block("input_blocks."), block("output_blocks.")) {
                (Some((block, rest)), _) if rest.starts_with("op.") => downsamplers.push(block),
                (_, Some((block, rest))) if rest.starts_with("conv.") => upsamplers.push(block),
                _ => {}
            }
        }
        for ends in [&mut downsamplers, &mut upsamplers] {
            ends.sort_unstable();
            ends.dedup();
        }
        Levels { downsamplers, upsamplers }
    }

    /// The level of a block, and its place in it; blocks are counted from `first`.
    fn place(ends: &[usize], block: usize, first: usize) -> Option<(usize, usize)> {
        let level = ends.partition_point(|&end| end < block);
        let start = level.checked_sub(1).map_or(first, |before| ends[before] + 1);
        Some((level, block.checked_sub(start)?))
    }
}

/// What the original keys of a U-Net begin with.
const UNET: &str = "model.diffusion_model.";

/// The places of a tensor: several where it holds several layers' weights, none where no part of painting
/// reads it. `vae_levels` is the number of levels of the VAE, whose decoder counts them from the other end; `levels` are
/// those of the U-Net.
///
/// The error says that the key begins like one of the models but is none of their tensors.
pub fn places(key: &str, vae_levels: usize, levels: &Levels) -> Result<Vec<Place>, Unknown> {
    let Some((component, rest)) = component(key) else { return Ok(Vec::new()) };
    let whole = |key: Option<String>| key.map(|key| vec![Place { component, key, part: Part::Whole }]);
    let places = match component {
        "unet" => whole(unet(rest, levels)),
        "vae" if rest.starts_with("loss.") || rest.starts_with("model_ema.") => Some(Vec::new()),
        "vae" => whole(vae(rest, vae_levels)),
        _ if is_transformers(rest) => whole(Some(rest.to_string())),
        _ => open_clip(component, rest, key.starts_with("cond_stage_model.")),
    };
    places.ok_or(Unknown)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// The component that a key belongs to, and the key within it.
fn component(key: &str) -> Option<(&'static str, &str)> {
    const PREFIXES: [(&str, &str); 8] = [
        (UNET, "unet"),
        ("first_stage_model.", "vae"),
        ("cond_stage_model.transformer.", "text_encoder"),
        ("cond_stage_model.model.", "text_encoder"),
        ("conditioner.embedders.0.transformer.", "text_encoder"),
        // The refiner has the second alone.
        ("conditioner.embedders.0.model.", "text_encoder_2"),
        ("conditioner.embedders.1.model.", "text_encoder_2"),
        ("conditioner.embedders.1.transformer.", "text_encoder_2"),
    ];
    PREFIXES.iter().find_map(|&(prefix, component)| Some((component, key.strip_prefix(prefix)?)))
}

/// Files written before transformers 4.26, and converted ones, have its keys without `text_model.`.
fn is_transformers(key: &str) -> bool {
    ["text_model.", "embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| key.starts_with(start))
}

/// The parts of the U-Net outside of the blocks that are counted.
const OUTER: [(&str, &str); 9] = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("time_embed.cond_proj.", "time_embedding.cond_proj."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
    ("middle_block.1.", "mid_block.attentions.0."),
];

fn unet(key: &str, levels: &Levels) -> Option<String> {
    if let Some((original, ours)) = OUTER.iter().find(|(original, _)| key.starts_with(original)) {
        return Some(key.replacen(original, ours, 1));
    }
    if let Some(rest) = key.strip_prefix("middle_block.") {
        let (index, rest) = number(rest)?;
        return Some(format!("mid_block.resnets.{}.{}", index / 2, resnet(rest)?));
    }
    if let Some(rest) = key.strip_prefix("input_blocks.") {
        let (block, rest) = number(rest)?;
        let (part, rest) = number(rest)?;
        let (level, layer) = Levels::place(&levels.downsamplers, block, 1)?;
        let inner = match (part, rest.strip_prefix("op.")) {
            (0, Some(rest)) => format!("downsamplers.0.conv.{rest}"),
            (0, None) => format!("resnets.{layer}.{}", resnet(rest)?),
            (1, None) => format!("attentions.{layer}.{rest}"),
            _ => return None,
        };
        return Some(format!("down_blocks.{level}.{inner}"));
    }
    let (block, rest) = number(key.strip_prefix("output_blocks.")?)?;
    let (part, rest) = number(rest)?;
    let (up, layer) = Levels::place(&levels.upsamplers, block, 0)?;
    let inner = match (part, rest.strip_prefix("conv.")) {
        (1 | 2, Some(rest)) => format!("upsamplers.0.conv.{rest}"),
        (0, None) => format!("resnets.{layer}.{}", resnet(rest)?),
        (1, None) => format!("attentions.{layer}.{rest}"),
        _ => return None,
    };
    Some(format!("up_blocks.{up}.{inner}"))
}

/// What the keys of the U-Net's modules begin with: in the layout of diffusers, and originally. Two originals
/// mean one of diffusers' where it depends on the block what stands in front of an upsampler.
pub fn unet_modules() -> Vec<(String, String)> {
    const MOST_BLOCKS: usize = 12;
    const INNER: [&str; 9] = [
        "",
        "op.",
        "conv.",
        "in_layers.0.",
        "in_layers.2.",
        "emb_layers.1.",
        "out_layers.0.",
        "out_layers.3.",
        "skip_connection.",
    ];
    let levels = Levels::regular();
    let blocks = |way: &'static str| {
        (0..MOST_BLOCKS)
            .flat_map(move |block| (0..3).map(move |part| format!("{way}_blocks.{block}.{part}.")))
    };
    let middle = (0..3).map(|part| format!("middle_block.{part}."));
    let parts = blocks("input").chain(blocks("output")).chain(middle);
    let inner = parts.flat_map(|part| INNER.map(|inner| format!("{part}{inner}")));
    let outer = OUTER.iter().map(|(original, _)| original.to_string());
    let mut modules: Vec<_> =
        outer.chain(inner).filter_map(|original| Some((unet(&original, &levels)?, original))).collect();
    modules.sort();
    modules.dedup();
    modules
}

fn resnet(key: &str) -> Option<String> {
    const LAYERS: [(&str, &str); 6] = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ];
    let (original, ours) = LAYERS.iter().find(|(original, _)| key.starts_with(original))?;
    Some(key.replacen(original, ours, 1))
}

/// Of ControlNets, which have files of their own, in the layout of lllyasviel's; without their prefix.
pub fn controlnet(key: &str) -> Option<String> {
    /// The hint's convs are each followed by a SiLU.
    const LAST_CONV: usize = 14;
    if let Some(rest) = key.strip_prefix("zero_convs.") {
        let (index, rest) = number(rest)?;
        return Some(format!("controlnet_down_blocks.{index}.{}", rest.strip_prefix("0.")?));
    }
    if let Some(rest) = key.strip_prefix("middle_block_out.0.") {
        return Some(format!("controlnet_mid_block.{rest}"));
    }
    if let Some(rest) = key.strip_prefix("input_hint_block.") {
        let (index, rest) = number(rest)?;
        let conv = match index {
            0 => "conv_in".to_string(),
            LAST_CONV => "conv_out".to_string(),
            _ => format!("blocks.{}", (index / 2).checked_sub(1)?),
        };
        return Some(format!("controlnet_cond_embedding.{conv}.{rest}"));
    }
    unet(key, &Levels::regular())
}

/// Also of VAEs in files of their own, which have no prefix.
pub fn vae(key: &str, levels: usize) -> Option<String> {
    if key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.") {
        return Some(key.to_string());
    }
    let (coder, rest) = key.split_once('.').filter(|(coder, _)| ["encoder", "decoder"].contains(coder))?;
    if rest.starts_with("conv_in.") || rest.starts_with("conv_out.") {
        return Some(key.to_string());
    }
    if let Some(rest) = rest.strip_prefix("norm_out.") {
        return Some(format!("{coder}.conv_norm_out.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("mid.") {
        let (layer, rest) = rest.split_once('.')?;
        let inner = match layer {
            "block_1" => format!("resnets.0.{}", vae_resnet(rest)),
            "block_2" => format!("resnets.1.{}", vae_resnet(rest)),
            "attn_1" => format!("attentions.0.{}", vae_attention(rest)?),
            _ => return None,
        };
        return Some(format!("{coder}.mid_block.{inner}"));
    }
    let (level, rest) = match coder {
        "encoder" => {
            let (level, rest) = number(rest.strip_prefix("down.")?)?;
            (format!("down_blocks.{level}"), rest)
        }
        _ => {
            let (level, rest) = number(rest.strip_prefix("up.")?)?;
            (format!("up_blocks.{}", levels.checked_sub(1 + level)?), rest)
        }
    };
    let inner = if let Some(rest) = rest.strip_prefix("block.") {
        let (index, rest) = number(rest)?;
        format!("resnets.{index}.{}", vae_resnet(rest))
    } else if let Some(rest) = rest.strip_prefix("downsample.") {
        format!("downsamplers.0.{rest}")
    } else {
        format!("upsamplers.0.{}", rest.strip_prefix("upsample.")?)
    };
    Some(format!("{coder}.{level}.{inner}"))
}

fn vae_resnet(key: &str) -> String {
    key.replacen("nin_shortcut.", "conv_shortcut.", 1)
}

fn vae_attention(key: &str) -> Option<String> {
    const LAYERS: [(&str, &str); 5] = [
        ("norm.", "group_norm."),
        ("q.", "to_q."),
        ("k.", "to_k."),
        ("v.", "to_v."),
        ("proj_out.", "to_out.0."),
    ];
    let (original, ours) = LAYERS.iter().find(|(original, _)| key.starts_with(original))?;
    Some(key.replacen(original, ours, 1))
}

/// `is_sd2`: the text encoder of Stable Diffusion 2.
fn open_clip(component: &'static str, key: &str, is_sd2: bool) -> Option<Vec<Place>> {
    let place = |key: String, part| Place { component, key, part };
    let whole = |key: String| Some(vec![place(key, Part::Whole)]);
    match key {
        "token_embedding.weight" => return whole("embeddings.token_embedding.weight".into()),
        "positional_embedding" => return whole("embeddings.position_embedding.weight".into()),
        "ln_final.weight" => return whole("final_layer_norm.weight".into()),
        "ln_final.bias" => return whole("final_layer_norm.bias".into()),
        "text_projection" if is_sd2 => return Some(Vec::new()),
        "text_projection" => return Some(vec![place("text_projection.weight".into(), Part::Transposed)]),
        "logit_scale" | "attn_mask" => return Some(Vec::new()),
        _ => {}
    }
    let (block, layer) = key.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    if is_sd2 && block == UNUSED_BLOCK_OF_H {
        return Some(Vec::new());
    }
    if let Some(kind) = layer.strip_prefix("attn.in_proj_") {
        let third = |(third, name)| {
            place(format!("encoder.layers.{block}.self_attn.{name}.{kind}"), Part::Third(third))
        };
        return Some([(0, "q_proj"), (1, "k_proj"), (2, "v_proj")].map(third).into());
    }
    const LAYERS: [(&str, &str); 5] = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let (original, ours) = LAYERS.iter().find(|(original, _)| layer.starts_with(original))?;
    whole(format!("encoder.layers.{block}.{}", layer.replacen(original, ours, 1)))
}

/// A number, and what comes after the dot behind it.
fn number(key: &str) -> Option<(usize, &str)> {
    let (number, rest) = key.split_once('.')?;
    Some((number.parse().ok()?, rest))
}
