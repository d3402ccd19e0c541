//! The table. A new parameter of a request takes a row, and a line in [`RequestPatch`](crate::pipeline::RequestPatch).

use self::Group::*;
use super::range::Range;

/// An interface that gives parameters names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    CommandLine,
    OpenAi,
    A1111,
}

/// The heading under which `--help` lists a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Prompt,
    Model,
    Sampling,
    Size,
    FromImage,
    ControlNets,
    Machine,
    Output,
    Network,
}

/// The field of an HTTP interface that holds a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The interface does not have the parameter.
    None,
    /// The value as it is.
    Plain(&'static str),
    /// A field with rules of its own, which the interface's code reads.
    Own(&'static str),
    /// A part of a field, by the names of the field and the part; read by the interface's code.
    Part(&'static str, &'static str),
}

/// The key of the text in images that holds a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The text in images does not have the parameter.
    None,
    /// Written where the value is not the default, and read as it is.
    Plain(&'static str),
    /// Written by [`Origin`](crate::image::Origin), and read as it is.
    Read(&'static str),
    /// Written by [`Origin`](crate::image::Origin), and read by [`Recorded`](crate::image::Recorded).
    Own(&'static str),
}

/// A text of a constant table: words, and the names of parameters, which depend on the interface.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    Text(&'static str),
    Name(Parameter),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The long flag of the command line, without its dashes.
    pub flag: &'static str,
    pub short: Option<char>,
    /// Another name of the flag.
    pub alias: Option<&'static str>,
    /// The value as `--help` names it; empty for a switch.
    pub value_name: &'static str,
    pub group: Group,
    pub openai: Field,
    pub a1111: Field,
    pub key: Key,
    pub range: Range,
    /// The default of all models, as the command line takes it.
    pub default: Option<&'static str>,
    pub help: &'static [Word],
}

impl Row {
    const fn new(group: Group, flag: &'static str, value_name: &'static str, help: &'static [Word]) -> Self {
        Row {
            flag,
            short: None,
            alias: None,
            value_name,
            group,
            openai: Field::None,
            a1111: Field::None,
            key: Key::None,
            range: Range::Free,
            default: None,
            help,
        }
    }

    const fn short(self, short: char) -> Self {
        Row { short: Some(short), ..self }
    }
    const fn alias(self, alias: &'static str) -> Self {
        Row { alias: Some(alias), ..self }
    }
    const fn fields(self, openai: Field, a1111: Field) -> Self {
        Row { openai, a1111, ..self }
    }
    const fn key(self, key: Key) -> Self {
        Row { key, ..self }
    }
    const fn range(self, range: Range) -> Self {
        Row { range, ..self }
    }
    const fn default(self, default: &'static str) -> Self {
        Row { default: Some(default), ..self }
    }
}

impl Field {
    /// The field that an error is about.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Field::None => None,
            Field::Plain(name) | Field::Own(name) | Field::Part(name, _) => Some(name),
        }
    }
}

impl Key {
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Key::None => None,
            Key::Plain(name) | Key::Read(name) | Key::Own(name) => Some(name),
        }
    }
}

impl Group {
    /// The heading in words.
    pub const fn heading(self) -> &'static str {
        match self {
            Group::Prompt => "Prompt",
            Group::Model => "Model",
            Group::Sampling => "Sampling",
            Group::Size => "Size",
            Group::FromImage => "From an image",
            Group::ControlNets => "ControlNets",
            Group::Machine => "Machine",
            Group::Output => "Output",
            Group::Network => "Network",
        }
    }
}

/// A help text: literals, and parameters by their variants.
macro_rules! words {
    (@ $text:literal) => { Word::Text($text) };
    (@ $name:ident) => { Word::Name(Parameter::$name) };
    ($($word:tt)*) => { &[$(words!(@ $word)),*] };
}

macro_rules! parameters {
    ($($name:ident: $row:expr;)*) => {
        /// A parameter of a request, or a setting of the program that messages name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Parameter { $($name),* }

        impl Parameter {
            /// All of them, in the order of `--help`.
            pub const ALL: &[Parameter] = &[$(Parameter::$name),*];

            pub fn row(self) -> &'static Row {
                static ROWS: &[Row] = &[$($row),*];
                &ROWS[self as usize]
            }
        }
    };
}

/// A share of the steps or of a strength.
const UNIT: Range = Range::Closed { from: 0.0, to: 1.0 };
/// How much of an image is generated anew.
const STRENGTH: Range = Range::Above { above: 0.0, to: 1.0 };
/// Pixels of a side. The convolution's coordinates have 16 bits, with a sign.
pub(super) const LARGEST_SIDE: u64 = 1 << 14;
const SIDE: Range = Range::Whole { from: 8, to: LARGEST_SIDE, multiple_of: 8 };
const SIZE: Range = Range::Pair { separator: 'x', from: 1, example: "1024x1024" };

parameters! {
    Prompt: Row::new(Prompt, "prompt", "TEXT", words!["What the image shows; - reads it from stdin"])
        .short('p').fields(Field::Own("prompt"), Field::Plain("prompt"));
    PromptFile: Row::new(Prompt, "prompt-file", "FILE", words![
        "Generates an image for every line, with the seeds N, N + 1, ..., to name-0.png, name-1.png, ...; empty "
        "lines and those that start with # are ignored; - reads stdin"
    ]);
    NegativePrompt: Row::new(Prompt, "negative-prompt", "TEXT", words![
        "What the image should not contain; used with a guidance scale above 1"
    ]).short('n').default("").fields(Field::Plain("negative_prompt"), Field::Plain("negative_prompt"));
    PromptStyle: Row::new(Prompt, "prompt-style", "NAME", words![
        "How prompts are read: plain (every character is text, as in diffusers) or a1111 (weights as in "
        "(word:1.3) and [word], BREAK)"
    ]).default("plain").fields(Field::Plain("prompt_style"), Field::None).key(Key::Plain("Prompt style"));
    LongPrompt: Row::new(Prompt, "long-prompt", "NAME", words![
        "Prompts of more than 75 tokens: chunk (encoded 75 by 75) or truncate (the rest is left out) [default: chunk "
        "for a1111, truncate for plain]"
    ]).fields(Field::Plain("long_prompt"), Field::None).key(Key::Plain("Long prompt"));
    ClipSkip: Row::new(Prompt, "clip-skip", "N", words![
        "The layer of the text encoder that is read, from the end: 1 is the last, as A1111 counts [default: 1; XL: 2]"
    ]).range(Range::from(1)).key(Key::Read("Clip skip"))
        .fields(Field::Plain("clip_skip"), Field::Part("override_settings", "CLIP_stop_at_last_layers"));
    Embedding: Row::new(Prompt, "embedding", "FILE[:NAME]", words![
        "A textual inversion; used where a prompt has its name; may be given several times"
    ]);
    From: Row::new(Prompt, "from", "IMAGE", words![
        "Generates with the parameters recorded in this image (PNG, JPEG or WebP of sdrt, A1111, Civitai); other "
        "flags win"
    ]);

    Model: Row::new(Model, "model", "MODEL", words![
        "A .safetensors file, a folder in the diffusers layout, or owner/name of a model on the hub, which is "
        "downloaded once; `emoji` is the model in sdrt itself, and a folder of that name is ./emoji"
    ]).short('m');
    Vae: Row::new(Model, "vae", "MODEL", words![
        "Another VAE: a .safetensors file, its folder, that of a model, or one on the hub"
    ]);
    Prediction: Row::new(Model, "prediction", "NAME", words![
        "What the U-Net predicts, where the files say it wrong or not at all: epsilon, v or sample"
    ]);
    Refiner: Row::new(Model, "refiner", "MODEL", words![
        "A second model that does the last steps on the latents of the first, such as the refiner of XL"
    ]);
    RefinerStart: Row::new(Model, "refiner-start", "X", words![
        "The share of the noise schedule after which " Refiner " takes over, above 0; 1 is never [default: 0.8]"
    ]).range(Range::Above { above: 0.0, to: 1.0 }).key(Key::Own("Refiner switch at"))
        .fields(Field::Plain("refiner_start"), Field::Plain("refiner_switch_at"));
    Lora: Row::new(Model, "lora", "FILE[:WEIGHT]", words![
        "A LoRA, a .safetensors file or owner/name:file of the hub, and its weight [default: 1]; may be given "
        "several times"
    ]);
    LoraDir: Row::new(Model, "lora-dir", "DIR", words![
        "The folder of the LoRAs that prompts name, as in <lora:name:0.8>, and the images of " From
        ": name.safetensors, or in a folder below"
    ]);
    RandomWeights: Row::new(Model, "random-weights", "SHAPES", words![
        "Random weights of known shapes instead of a model"
    ]);
    RandomControlnets: Row::new(Model, "random-controlnets", "N", words![
        "So many ControlNets with random weights, of the family of " RandomWeights
    ]);

    Steps: Row::new(Sampling, "steps", "N", words!["Denoising steps [default: the model's]"])
        .range(Range::from(1)).key(Key::Read("Steps"))
        .fields(Field::Plain("num_inference_steps"), Field::Plain("steps"));
    GuidanceScale: Row::new(Sampling, "guidance-scale", "X", words![
        "How far to follow the prompt; up to 1 is no guidance, at half the time [default: the model's]"
    ]).alias("cfg-scale").range(Range::Finite).key(Key::Read("CFG scale"))
        .fields(Field::Plain("guidance_scale"), Field::Plain("cfg_scale"));
    GuidanceRescale: Row::new(Sampling, "guidance-rescale", "X", words![
        "Rescales guidance against over-saturated images, 0 to 1; 0.7 suits models with v_prediction"
    ]).range(UNIT).default("0").key(Key::Plain("CFG Rescale"))
        .fields(Field::Plain("guidance_rescale"), Field::None);
    GuidanceStart: Row::new(Sampling, "guidance-start", "X", words![
        "The share of the steps, 0 to below " GuidanceEnd ", in which guidance does not act yet"
    ]).range(UNIT).default("0").key(Key::Plain("Guidance start"))
        .fields(Field::Plain("guidance_start"), Field::Plain("guidance_start"));
    GuidanceEnd: Row::new(Sampling, "guidance-end", "X", words![
        "The share of the steps, up to 1, after which guidance does not act any more"
    ]).range(UNIT).default("1").key(Key::Plain("Guidance end"))
        .fields(Field::Plain("guidance_end"), Field::Plain("guidance_end"));
    ImageGuidanceScale: Row::new(Sampling, "image-guidance-scale", "X", words![
        "How close an InstructPix2Pix model stays to " InitImage ", which it edits; from 1 [default: 1.5]"
    ]).range(Range::Closed { from: 1.0, to: 100.0 }).key(Key::Plain("Image CFG scale"))
        .fields(Field::Plain("image_guidance_scale"), Field::Plain("image_cfg_scale"));
    Sampler: Row::new(Sampling, "sampler", "NAME", words![
        "ddim, pndm, euler, euler-a, heun, dpm2, dpm2-a, dpm++2s-a, dpm++2m, dpm++2m-sde, dpm++3m-sde, deis, ipndm, "
        "lms, unipc, lcm, tcd or ddpm [default: the model's]"
    ]).key(Key::Own("Sampler")).fields(Field::Plain("sampler"), Field::Own("sampler_name"));
    Schedule: Row::new(Sampling, "schedule", "NAME", words![
        "model, leading, linspace, trailing, sgm_uniform, karras, exponential, beta or ays (Align Your Steps)"
    ]).default("model").key(Key::Own("Schedule type")).fields(Field::Plain("schedule"), Field::Own("scheduler"));
    Eta: Row::new(Sampling, "eta", "X", words![
        "How much of the noise that a step takes away is drawn anew, 0 to 1; for ddim, tcd, and the samplers with -a "
        "or -sde in their names [default: ddim 0, tcd 0.3, else 1]"
    ]).range(UNIT).key(Key::Read("Eta")).fields(Field::Plain("eta"), Field::Plain("eta"));
    Sigmas: Row::new(Sampling, "sigmas", "X,X,...", words![
        "Noise levels of the steps, from high to low, instead of a schedule: \"14.6,7.8,3.1,0\" are three steps"
    ]).key(Key::Plain("Sigmas")).fields(Field::Plain("sigmas"), Field::None);
    Seed: Row::new(Sampling, "seed", "N", words![
        "The same seed gives the same image; image i of several has seed N + i [default: random]"
    ]).short('s').range(Range::from(0)).key(Key::Read("Seed")).fields(Field::Plain("seed"), Field::Own("seed"));
    Rng: Row::new(Sampling, "rng", "NAME", words![
        "Noise generator: cpu (torch's CPU generator, as diffusers) or cuda (Philox, as A1111)"
    ]).default("cpu").key(Key::Own("RNG"))
        .fields(Field::Plain("rng"), Field::Part("override_settings", "randn_source"));

    Width: Row::new(Size, "width", "N", words!["Pixels, a multiple of 8 [default: the model's]"])
        .short('W').range(SIDE).fields(Field::Part("size", "width"), Field::Plain("width"));
    Height: Row::new(Size, "height", "N", words!["Pixels, a multiple of 8 [default: the model's]"])
        .short('H').range(SIDE).fields(Field::Part("size", "height"), Field::Plain("height"));
    OriginalSize: Row::new(Size, "original-size", "WxH", words![
        "XL: the size of the original that the image seems to come from, as in 1024x1024 [default: the image's]"
    ]).range(SIZE).key(Key::Plain("Original size"));
    Crop: Row::new(Size, "crop", "X,Y", words![
        "XL: how much of the original seems cut off at its left and top, as in 0,256"
    ]).range(Range::Pair { separator: ',', from: 0, example: "0,256" }).default("0,0").key(Key::Plain("Crop"));
    TargetSize: Row::new(Size, "target-size", "WxH", words![
        "XL: the size that the original seems brought to [default: the image's]"
    ]).range(SIZE).key(Key::Plain("Target size"));
    AestheticScore: Row::new(Size, "aesthetic-score", "X", words![
        "XL's refiner: the aesthetic score that the image seems to have [default: 6]"
    ]).range(Range::Finite).key(Key::Plain("Aesthetic score")).fields(Field::Plain("aesthetic_score"), Field::None);
    NegativeAestheticScore: Row::new(Size, "negative-aesthetic-score", "X", words![
        "XL's refiner: the same of what guidance leads away from [default: 2.5]"
    ]).range(Range::Finite).key(Key::Plain("Negative aesthetic score"))
        .fields(Field::Plain("negative_aesthetic_score"), Field::None);
    NumImages: Row::new(Size, "num-images", "N", words!["Images of every prompt; image i has the seed N + i"])
        .short('b').range(Range::from(1)).default("1").fields(Field::Plain("n"), Field::Own("batch_size"));

    InitImage: Row::new(FromImage, "init-image", "FILE", words![
        "An image to start from: PNG, JPEG or WebP; without " Width " and " Height
        " its own size, to the multiple of 8 below"
    ]).short('i').alias("init-img").fields(Field::Own("image"), Field::Own("init_images"));
    Strength: Row::new(FromImage, "strength", "X", words![
        "How much of " InitImage " is generated anew, above 0 to 1 [default: as diffusers, 0.8, of XL 0.3; with " Mask
        " 1, of XL 0.9999; of InstructPix2Pix 1]"
    ]).range(STRENGTH).fields(Field::Plain("strength"), Field::Own("denoising_strength"));
    Mask: Row::new(FromImage, "mask", "FILE", words![
        "What is light in this image is generated, what is dark is kept of " InitImage
    ]).fields(Field::Own("mask"), Field::Own("mask"));
    HiresScale: Row::new(FromImage, "hires-scale", "X", words![
        "Hires fix: generates, enlarges the latents by this, and denoises them again"
    ]).range(Range::Above { above: 1.0, to: LARGEST_SIDE as f64 }).key(Key::Own("Hires upscale"))
        .fields(Field::Plain("hires_scale"), Field::Own("hr_scale"));
    HiresStrength: Row::new(FromImage, "hires-strength", "X", words![
        "How much the second pass of " HiresScale " generates anew, above 0 to 1"
    ]).range(STRENGTH).default("0.7").key(Key::Own("Denoising strength"))
        .fields(Field::Plain("hires_strength"), Field::Own("denoising_strength"));
    HiresSteps: Row::new(FromImage, "hires-steps", "N", words![
        "Steps of the second pass, of which " HiresStrength " takes its part [default: as " Steps "]"
    ]).range(Range::from(1)).key(Key::Own("Hires steps"))
        .fields(Field::Plain("hires_steps"), Field::Own("hr_second_pass_steps"));

    Controlnet: Row::new(ControlNets, "controlnet", "MODEL", words![
        "A ControlNet made for the model's family: a .safetensors file, a folder in the diffusers layout, or "
        "owner/name of one on the hub; may be given several times, the flags below each behind its own"
    ]);
    ControlImage: Row::new(ControlNets, "control-image", "FILE", words![
        "What it reads, ready-made: edges, depths, a pose, ...; PNG, JPEG or WebP, brought to the size of the image, "
        "whose size it gives where no other is given"
    ]);
    ControlStrength: Row::new(ControlNets, "control-strength", "X", words![
        "How much of its output is added [default: 1]"
    ]).range(Range::Finite);
    ControlStart: Row::new(ControlNets, "control-start", "X", words![
        "The share of the steps in which it does not act yet [default: 0]"
    ]).range(UNIT);
    ControlEnd: Row::new(ControlNets, "control-end", "X", words![
        "The share of the steps after which it does not act any more [default: 1]"
    ]).range(UNIT);

    VaeTiling: Row::new(Machine, "vae-tiling", "WHEN", words![
        "Encodes and decodes images tile by tile, in the memory of one tile: auto (where the whole does not fit), on "
        "or off"
    ]);
    VaeTileSize: Row::new(Machine, "vae-tile-size", "N", words![
        "Latent pixels of a tile's side [default: what the VAE was trained at; Stable Diffusion 1.x: 64]"
    ]);
    Device: Row::new(Machine, "device", "DEVICE", words!["auto, cpu, cuda or cuda:N"]);
    Dtype: Row::new(Machine, "dtype", "DTYPE", words![
        "The type of weights and activations: f16, bf16 or f32 [default: f16 on a GPU, f32 on the CPU]"
    ]);

    Output: Row::new(Output, "output", "FILE", words![
        "Where the image goes: .png, .jpg or .webp (lossless); several go to name-0.png, name-1.png, ..."
    ]).short('o');
    Quality: Row::new(Output, "quality", "N", words!["Quality of a JPEG, from 1 to 100 [default: 95]"])
        .range(Range::whole(1, 100));
    Show: Row::new(Output, "show", "", words![
        "Draws the image in the terminal, too: kitty's graphics, iTerm2's, sixels, or half blocks of colour"
    ]);
    Preview: Row::new(Output, "preview", "N", words![
        "Writes a preview of the image to a file every N model evaluations"
    ]);
    PreviewPath: Row::new(Output, "preview-path", "FILE", words![
        "Where previews go, as PNG [default: beside the output, as sdrt-preview.png]"
    ]);
    PreviewMethod: Row::new(Output, "preview-method", "NAME", words![
        "proj (small, a linear map of the latents; takes no time) or vae (as large as the image; slow but with a tiny "
        "VAE) [default: vae with " PreviewVae " or a tiny " Vae ", or where there is no such map, else proj]"
    ]);
    PreviewVae: Row::new(Output, "preview-vae", "MODEL", words![
        "A tiny VAE that decodes previews, as TAESD for Stable Diffusion 1.x and 2.x and TAESDXL for XL, while the "
        "model's own decodes the image: a .safetensors file, a folder in the diffusers layout, or one on the hub; "
        "instead of " PreviewMethod
    ]);
    Quiet: Row::new(Output, "quiet", "", words!["Prints warnings and errors only"]).short('q');
    Json: Row::new(Output, "json", "", words![
        "Prints a line of JSON for every prompt on stdout instead of a table"
    ]);

    ApiKey: Row::new(Network, "api-key", "KEY", words![
        "The API key that clients must send: as a bearer token, or as the password of A1111's clients"
    ]);
    Cors: Row::new(Network, "cors", "ORIGIN", words![
        "An allowed CORS origin, as https://example.com, or * for all; may be given several times"
    ]);
}
