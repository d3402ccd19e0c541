//! The spellings that one tensor's key has had over the years.

use std::borrow::Cow;

/// The VAE's attention, as diffusers named its layers before 0.17 and since.
const OLD_ATTENTION: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// The component that decodes previews.
pub const PREVIEW_VAE: &str = "preview_vae";

/// The one spelling under which a tensor is looked up, whatever the file or the model calls it.
pub fn canonical<'a>(component: &str, key: &'a str) -> Cow<'a, str> {
    match component {
        // transformers wrote this prefix before 5.0, and leaves it out since.
        "text_encoder" | "text_encoder_2" => key.strip_prefix("text_model.").unwrap_or(key).into(),
        "vae" if key.contains(".attentions.") => OLD_ATTENTION
            .iter()
            .find(|(old, _)| key.contains(old))
            .map_or(key.into(), |(old, new)| key.replacen(old, new, 1).into()),
        _ => key.into(),
    }
}

/// Whether a tensor is in the file but no part of the computation. Takes a canonical key.
pub fn is_ignored(component: &str, canonical: &str) -> bool {
    match component {
        // Position ids are 0, 1, 2, ...; the projection is for comparing texts with pictures.
        "text_encoder" => matches!(canonical, "embeddings.position_ids" | "text_projection.weight"),
        "text_encoder_2" => canonical == "embeddings.position_ids",
        PREVIEW_VAE => canonical.starts_with("encoder."),
        _ => false,
    }
}
