//! Configurations: the public ones as their files say them, and what is said about the others.

use std::fs;

use sdrt::info::Info;
use sdrt::location::Location;
use sdrt::model::config::{
    BlockKind, ClipConfig, ControlNetConfig, MidBlock, ModelConfig, TextTimeConfig, UNetConfig, UNetInput,
    VaeConfig,
};
use sdrt::ops::{Activation, DType};
use sdrt::pipeline::{KnownShapes, Model, ModelFiles, Request};
use sdrt::sampler::Sampler;
use sdrt::workload::Workload;
use serde_json::{Value, json};
use tempfile::TempDir;

/// `unet/config.json` of Stable Diffusion 1.5, without the keys that say the default.
fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
        "cross_attention_dim": 768,
        "down_block_types":
            ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
        "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    })
}

fn vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "in_channels": 3, "latent_channels": 4,
        "layers_per_block": 2, "out_channels": 3, "sample_size": 512,
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    })
}

fn clip() -> Value {
    json!({
        "architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768,
        "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
        "projection_dim": 768, "vocab_size": 49408,
    })
}

/// `config` with other values for some keys.
fn with(mut config: Value, changes: Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn read<T>(config: Value, read: fn(&Location) -> sdrt::Result<T>) -> sdrt::Result<T> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let result = read(&path.as_path().into());
    if let Err(error) = &result {
        let sentence = error.to_string();
        assert!(sentence.starts_with(&path.display().to_string()), "{sentence:?} does not name the file");
    }
    result
}

#[track_caller]
fn assert_refused<T>(result: sdrt::Result<T>, parts: &[&str]) {
    let sentence = result.err().expect("refused").to_string();
    for part in parts {
        assert!(sentence.contains(part), "{sentence:?} does not say {part:?}");
    }
}

/// The file says nothing of `force_upcast`.
fn vae_of_file() -> VaeConfig {
    VaeConfig { force_upcast: true, ..VaeConfig::sd15() }
}

#[test]
fn stable_diffusion_1_5_reads_as_its_public_shapes() {
    assert_eq!(read(unet(), UNetConfig::read).unwrap(), UNetConfig::sd15());
    assert_eq!(read(vae(), VaeConfig::read).unwrap(), vae_of_file());
    assert_eq!(read(clip(), ClipConfig::read).unwrap(), ClipConfig::vit_l());
    assert_eq!(VaeConfig::sd15().scale_factor(), 8);
}

#[test]
fn lists_nulls_and_other_shapes_read() {
    let changes = json!({
        "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true, "upcast_attention": true,
        "layers_per_block": [1, 2, 3, 4], "transformer_layers_per_block": [1, 2, 1, 1], "act_fn": "swish",
        "cross_attention_dim": [1024, 1024, 1024, 1024], "sample_size": null, "class_embed_type": null,
        "mid_block_scale_factor": 1.0, "only_cross_attention": [false, false, false, false],
        "num_attention_heads": null,
    });
    let config = read(with(unet(), changes), UNetConfig::read).unwrap();
    assert_eq!(config.heads, [5, 10, 20, 20]);
    assert_eq!((config.cross_attention_dim, config.use_linear_projection), (1024, true));
    assert_eq!(config.layers_per_block, [1, 2, 3, 4]);
    assert_eq!(config.down_depths, [vec![1], vec![2; 2], vec![1; 3], vec![]]);
    assert_eq!(config.up_depths, [vec![], vec![1; 4], vec![2; 3], vec![1; 2]]);
    assert_eq!(config.sample_size, 64);
    assert_eq!(config.down_blocks[3], BlockKind::Resnets);
    let heads =
        read(with(unet(), json!({"num_attention_heads": [4, 8, 16, 16]})), UNetConfig::read).unwrap().heads;
    assert_eq!(heads, [4, 8, 16, 16], "the key that says what it means wins");

    let config =
        read(with(vae(), json!({"scaling_factor": 0.5, "use_quant_conv": false})), VaeConfig::read).unwrap();
    assert_eq!(
        (config.scaling_factor, config.use_quant_conv, config.use_post_quant_conv),
        (0.5, false, true)
    );
    let config = read(with(clip(), json!({"hidden_act": "gelu"})), ClipConfig::read).unwrap();
    assert_eq!(config.hidden_act, Activation::Gelu);
}

/// `config.json` of the U-Net of Stable Diffusion XL.
fn unet_xl() -> Value {
    let changes = json!({
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true, "sample_size": 128,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    });
    with(unet(), changes)
}

#[test]
fn siblings_of_xl_read_as_their_public_shapes() {
    assert_eq!(read(unet_xl(), UNetConfig::read).unwrap(), UNetConfig::sdxl());
    let ssd = json!({
        "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    });
    let config = read(with(unet_xl(), ssd), UNetConfig::read).unwrap();
    assert_eq!(config.down_depths, [vec![], vec![2; 2], vec![4; 2]]);
    assert_eq!(config.up_depths, [vec![4, 4, 10], vec![2, 1, 1], vec![]]);
    assert_eq!(config.mid_block, MidBlock::Resnet);
    let koala = json!({
        "mid_block_type": null, "layers_per_block": 1, "transformer_layers_per_block": [0, 2, 5],
    });
    let config = read(with(unet_xl(), koala), UNetConfig::read).unwrap();
    assert_eq!(config.down_depths, [vec![], vec![2], vec![5]]);
    assert_eq!(config.up_depths, [vec![5; 2], vec![2; 2], vec![]]);
    assert_eq!(config.mid_block, MidBlock::None);
    // Of a block without attention, no value means anything.
    let other = json!({
        "transformer_layers_per_block": [[7, 7, 7], [1, 2], [3, 4]],
        "reverse_transformer_layers_per_block": [[1, 2, 3], [4, 5, 6], []],
    });
    let config = read(with(unet_xl(), other), UNetConfig::read).unwrap();
    assert_eq!(config.down_depths, [vec![], vec![1, 2], vec![3, 4]]);
    assert_eq!(config.up_depths, [vec![1, 2, 3], vec![4, 5, 6], vec![]]);
    assert_eq!(config.mid_block, MidBlock::CrossAttention { depth: 3 });
    let refiner = json!({
        "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4, "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    });
    let config = read(with(unet_xl(), refiner.clone()), UNetConfig::read).unwrap();
    // How many numbers there are follows from the text encoder.
    let six = TextTimeConfig { pooled_dim: 1024, time_embed_dim: 256, numbers: TextTimeConfig::SIZES };
    assert_eq!(config, UNetConfig { text_time: Some(six), ..UNetConfig::sdxl_refiner() });

    let folder = TempDir::new().unwrap();
    let write = |name: &str, config: Value| {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("config.json"), config.to_string()).unwrap();
    };
    write("unet", with(unet_xl(), refiner));
    write("vae", with(vae(), json!({"scaling_factor": 0.13025, "sample_size": 1024})));
    let big_g = json!({
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 1280,
    });
    write("text_encoder_2", with(clip(), big_g));
    assert_eq!(
        ModelConfig::read(&folder.path().into(), &["text_encoder_2"]).unwrap(),
        ModelConfig::sdxl_refiner()
    );
}

#[test]
fn latents_may_have_a_mean_and_a_deviation() {
    let latents = |mean: Value, std: Value| {
        read(with(vae(), json!({"latents_mean": mean, "latents_std": std})), VaeConfig::read)
    };
    let config = latents(json!([1.0, -2.0, 0.5, 0.0]), json!([2.0, 4.0, 1.0, 8.0])).unwrap();
    let normalizations = [0, 1, 2, 3].map(|channel| config.normalization(channel));
    let s = 0.18215f32;
    assert_eq!(normalizations, [(s / 2.0, -s / 2.0), (s / 4.0, s / 2.0), (s, -0.5 * s), (s / 8.0, -0.0)]);
    assert_eq!(latents(json!(null), json!(null)).unwrap().normalization(3), (s, 0.0));
    for (mean, std, named) in [
        (json!([1.0, 2.0]), json!([1.0, 1.0]), "latents_mean is [1.0,2.0]; expected a list of 4 numbers"),
        (json!([0, 0, 0, 0]), json!([1, 1, 0, 1]), "latents_std is [1,1,0,1]; expected a list of 4 numbers"),
        (json!([0, 0, 0, 0]), json!(null), "latents_std is null; expected a list, as latents_mean is one"),
        (json!(null), json!([1, 1, 1, 1]), "latents_mean is null; expected a list"),
        (json!(3), json!([1, 1, 1, 1]), "latents_mean is 3; expected a list of 4 numbers"),
    ] {
        assert_refused(latents(mean, std), &[named]);
    }
}

#[test]
fn unsupported_u_nets_are_refused_in_a_sentence() {
    let refused = |changes: Value, parts: &[&str]| {
        assert_refused(read(with(unet(), changes), UNetConfig::read), parts);
    };
    refused(
        json!({"addition_embed_type": "image"}),
        &["addition_embed_type is \"image\"", "only \"text_time\""],
    );
    let narrow = json!({"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 1280});
    refused(
        narrow,
        &["projection_class_embeddings_input_dim is 1280", "6 or 5 times addition_time_embed_dim, 256"],
    );
    refused(json!({"time_cond_proj_dim": 7}), &["time_cond_proj_dim is 7; expected a multiple of 8"]);
    for (key, value, supported) in [
        ("_class_name", json!("UNet2DModel"), "\"UNet2DConditionModel\""),
        ("act_fn", json!("gelu"), "only \"silu\" and \"swish\" are supported"),
        ("attention_type", json!("gated"), "only \"default\" is supported"),
        ("center_input_sample", json!(true), "only false is supported"),
        ("class_embed_type", json!("timestep"), "only null is supported"),
        ("class_embeddings_concat", json!(true), "only false"),
        ("conv_in_kernel", json!(1), "only 3"),
        ("conv_out_kernel", json!(1), "only 3"),
        ("cross_attention_norm", json!("layer_norm"), "only null"),
        ("downsample_padding", json!(0), "only 1"),
        ("dual_cross_attention", json!(true), "only false"),
        ("encoder_hid_dim", json!(64), "only null"),
        ("encoder_hid_dim_type", json!("text_proj"), "only null"),
        ("mid_block_only_cross_attention", json!(true), "only false"),
        ("mid_block_scale_factor", json!(2), "only 1"),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn"), "only \"UNetMidBlock2DCrossAttn\""),
        ("num_class_embeds", json!(10), "only null"),
        ("only_cross_attention", json!([true, false, false, false]), "only false"),
        ("resnet_out_scale_factor", json!(1.5), "only 1"),
        ("resnet_skip_time_act", json!(true), "only false"),
        ("resnet_time_scale_shift", json!("scale_shift"), "only \"default\""),
        ("reverse_transformer_layers_per_block", json!([[1]]), "or 4 of them, one for each level"),
        ("reverse_transformer_layers_per_block", json!([1, [1, 1], 1, 1]), "a list of [3, 3, 3, 3] of them"),
        ("transformer_layers_per_block", json!([[1, 1, 1], 1, 1, 1]), "a list of [2, 2, 2, 2] of them"),
        ("transformer_layers_per_block", json!(33), "from 0 to 32"),
        ("time_embedding_act_fn", json!("silu"), "only null"),
        ("time_embedding_dim", json!(64), "only null"),
        ("time_embedding_type", json!("fourier"), "only \"positional\""),
        ("timestep_post_act", json!("silu"), "only null"),
        (
            "attention_head_dim",
            json!(7),
            "must divide 320 channels into heads of a multiple of 8, at most 160",
        ),
        ("attention_head_dim", json!(1), "must divide 320 channels"),
        ("attention_head_dim", json!([8, 8]), "or 4 of them, one for each level"),
        ("block_out_channels", json!([]), "expected a list of 1 to 8"),
        ("block_out_channels", json!(320), "expected a list of 1 to 8"),
        ("block_out_channels", json!([320, 640, 1280, 1284]), "expected multiples of 8"),
        ("block_out_channels", json!([320, 640, 1280, 1u64 << 40]), "from 8 to 2048"),
        ("cross_attention_dim", json!(770), "one multiple of 8 for all levels"),
        ("cross_attention_dim", json!([768, 768, 1024, 768]), "one multiple of 8 for all levels"),
        ("down_block_types", json!(["DownBlock2D"]), "expected 4 blocks"),
        (
            "down_block_types",
            json!(vec!["AttnDownBlock2D"; 4]),
            "\"DownBlock2D\" or \"CrossAttnDownBlock2D\"",
        ),
        ("down_block_types", json!(1), "expected a list of strings"),
        ("up_block_types", json!(vec!["DownBlock2D"; 4]), "\"UpBlock2D\" or \"CrossAttnUpBlock2D\""),
        ("flip_sin_to_cos", json!(1), "expected true or false"),
        ("freq_shift", json!("x"), "expected a number"),
        ("freq_shift", json!(160), "expected a number below 160"),
        ("in_channels", json!(0), "from 1 to"),
        ("out_channels", json!(6), "expected a multiple of 4"),
        ("layers_per_block", json!(0), "from 1 to 32"),
        ("layers_per_block", json!(2.5), "expected a whole number"),
        ("norm_eps", json!(0), "expected a number above 0"),
        ("norm_num_groups", json!(48), "320 channels cannot be divided into that many groups"),
        ("sample_size", json!([64, 64]), "expected a whole number"),
        (
            "transformer_layers_per_block",
            json!([[1, 1], 1, 1, 1]),
            "supported with reverse_transformer_layers_per_block only",
        ),
    ] {
        let mut config = json!({});
        config[key] = value.clone();
        refused(config, &[&format!("{key} is {value}; "), supported]);
    }
}

/// `config.json` of a ControlNet for Stable Diffusion 1.5.
fn controlnet() -> Value {
    let mut config = unet();
    let keys = config.as_object_mut().unwrap();
    keys.retain(|key, _| !["out_channels", "sample_size", "up_block_types"].contains(&key.as_str()));
    let changes = json!({
        "_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": false,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "projection_class_embeddings_input_dim": null,
    });
    with(config, changes)
}

#[test]
fn a_controlnet_reads_as_the_encoder_of_its_u_net() {
    let config = read(controlnet(), ControlNetConfig::read).unwrap();
    assert_eq!(config.encoder, UNetConfig { up_blocks: vec![], up_depths: vec![], ..UNetConfig::sd15() });
    assert_eq!((&config.embedding_channels, config.is_bgr), (&vec![16, 32, 96, 256], false));
    assert_eq!(config, ControlNetConfig::of_family(&UNetConfig::sd15()));
    let small = json!({
        "down_block_types": vec!["DownBlock2D"; 4], "mid_block_type": "UNetMidBlock2D",
        "controlnet_conditioning_channel_order": "bgr", "conditioning_embedding_out_channels": null,
    });
    let config = read(with(controlnet(), small), ControlNetConfig::read).unwrap();
    assert_eq!(config.encoder.down_blocks, [BlockKind::Resnets; 4]);
    assert_eq!((config.encoder.mid_block, config.is_bgr), (MidBlock::Resnet, true));
    assert_eq!(config.embedding_channels, [16, 32, 96, 256]);
}

#[test]
fn controlnets_without_files_have_as_many_parameters_as_published_ones() {
    for (shapes, parameters) in [
        (KnownShapes::Sd15, 361_279_120),
        (KnownShapes::Sd21, 364_228_240),
        (KnownShapes::Sdxl, 1_251_014_160),
    ] {
        let model = Model::Random { shapes, controlnets: 1 };
        let (width, height) = (Some(64), Some(64));
        let workload =
            Workload { model, steps: 1, guidance_scale: None, width, height, batch_invariant: false };
        let info = Info::new(&workload.model, &workload.request(1).unwrap(), DType::F16).unwrap();
        assert_eq!(info.components()["controlnet"].1, 2 * parameters, "{shapes}");
    }
    let model = Model::Random { shapes: KnownShapes::Sd15, controlnets: 9 };
    let error = model.describe().unwrap_err().to_string();
    assert_eq!(error, "9 ControlNets: expected at most 8 --random-controlnets");
}

#[test]
fn unsupported_controlnets_are_refused_in_a_sentence() {
    for (key, value, supported) in [
        ("_class_name", json!("ControlNetUnionModel"), "only \"ControlNetModel\" is supported"),
        ("conditioning_channels", json!(6), "only 3 is supported"),
        ("global_pool_conditions", json!(true), "only false is supported"),
        ("mid_block_type", json!("other"), "\"UNetMidBlock2D\" are supported"),
        ("controlnet_conditioning_channel_order", json!("gbr"), "only \"rgb\" and \"bgr\" are"),
        ("conditioning_embedding_out_channels", json!([16, 20]), "expected a list of multiples of 8"),
        ("conditioning_embedding_out_channels", json!([]), "expected a list of multiples of 8"),
        ("attention_head_dim", json!(7), "it is a number of heads"),
    ] {
        let config = with(controlnet(), json!({key: value}));
        assert_refused(read(config, ControlNetConfig::read), &[&format!("{key} is {value}; "), supported]);
    }
}

#[test]
fn unsupported_vaes_and_text_encoders_are_refused_in_a_sentence() {
    for (key, value, supported) in [
        ("_class_name", json!("AutoencoderTiny"), "\"AutoencoderKL\""),
        ("act_fn", json!("relu"), "\"silu\""),
        ("down_block_types", json!(vec!["AttnDownEncoderBlock2D"; 4]), "\"DownEncoderBlock2D\""),
        ("down_block_types", json!(vec!["DownEncoderBlock2D"; 3]), "as many as block_out_channels"),
        ("up_block_types", json!(vec!["AttnUpDecoderBlock2D"; 4]), "\"UpDecoderBlock2D\""),
        ("shift_factor", json!(0.1), "only null is supported"),
        ("in_channels", json!(4), "only 3"),
        ("out_channels", json!(4), "only 3"),
        ("latent_channels", json!(3), "expected a multiple of 4"),
        ("scaling_factor", json!(-1), "expected a number above 0"),
        ("block_out_channels", json!([128, 256, 512, 1024]), "at most 512 at the end"),
        ("norm_num_groups", json!(5), "128 channels cannot be divided"),
    ] {
        let mut config = vae();
        config[key] = value.clone();
        assert_refused(read(config, VaeConfig::read), &[&format!("{key} is {value}; "), supported]);
    }
    for (key, value, supported) in [
        ("model_type", json!("t5"), "\"clip_text_model\""),
        ("hidden_act", json!("relu"), "\"quick_gelu\" and \"gelu\""),
        ("num_attention_heads", json!(7), "must divide 768 channels"),
        ("hidden_size", json!(1 << 20), "from 1 to 2048"),
        ("intermediate_size", json!(1 << 20), "from 1 to 16384"),
        ("hidden_size", json!(770), "expected a multiple of 8"),
        ("vocab_size", json!(1u64 << 40), "from 4 to 1048576"),
    ] {
        let mut config = clip();
        config[key] = value.clone();
        assert_refused(read(config, ClipConfig::read), &[&format!("{key} is {value}; "), supported]);
    }
}

#[test]
fn the_three_models_must_fit_one_another() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, config: Value| {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("config.json"), config.to_string()).unwrap();
    };
    write("unet", unet());
    write("vae", vae());
    assert_refused(
        ModelConfig::read(&folder.path().into(), &["text_encoder"]),
        &["text_encoder/config.json", "no such file"],
    );
    write("text_encoder", clip());
    assert_eq!(
        ModelConfig::read(&folder.path().into(), &["text_encoder"]).unwrap(),
        ModelConfig { vae: vae_of_file().into(), ..ModelConfig::sd15() }
    );
    write("unet", with(unet(), json!({"cross_attention_dim": 1024})));
    let parts = ["unet/config.json", "cross_attention_dim is 1024", "hidden_size of the text encoder is 768"];
    assert_refused(ModelConfig::read(&folder.path().into(), &["text_encoder"]), &parts);
    write("unet", with(unet(), json!({"in_channels": 9})));
    let config = ModelConfig::read(&folder.path().into(), &["text_encoder"]).unwrap();
    assert_eq!(config.unet_input(), UNetInput::MaskedImage);
    write("unet", with(unet(), json!({"in_channels": 8})));
    let config = ModelConfig::read(&folder.path().into(), &["text_encoder"]).unwrap();
    assert_eq!(config.unet_input(), UNetInput::Image);
    write("unet", with(unet(), json!({"in_channels": 5})));
    assert_refused(
        ModelConfig::read(&folder.path().into(), &["text_encoder"]),
        &["in_channels is 5", "latent_channels, 4", "inpainting"],
    );
}

#[test]
fn a_model_may_say_its_own_steps_and_guidance() {
    let folder = TempDir::new().unwrap();
    for (name, config) in [("unet", unet()), ("vae", vae()), ("text_encoder", clip())] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("config.json"), config.to_string()).unwrap();
    }
    let scheduler = json!({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear"});
    fs::create_dir(folder.path().join("scheduler")).unwrap();
    fs::write(folder.path().join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
    let describe = |defaults: &Value| {
        let index = json!({"_class_name": "StableDiffusionPipeline", "_sdrt": defaults});
        fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
        ModelFiles::from(Location::from(folder.path())).describe()
    };
    for (defaults, sampler, expected) in [
        (json!(null), Sampler::Ddim, (20, 7.5)),
        (json!(null), Sampler::Lcm, (4, 1.0)),
        (json!({}), Sampler::Ddim, (20, 7.5)),
        (json!({"num_inference_steps": 1, "guidance_scale": 0}), Sampler::Euler, (1, 0.0)),
        (json!({"guidance_scale": 4.5, "num_inference_steps": null}), Sampler::Ddim, (20, 4.5)),
        // Who made the model knows better than a rule for all of a sampler's models.
        (json!({"num_inference_steps": 8}), Sampler::Lcm, (8, 1.0)),
    ] {
        let request = Request::defaults(&describe(&defaults).unwrap(), sampler);
        assert_eq!((request.steps, request.guidance_scale), expected, "{defaults} {sampler}");
    }
    for (defaults, sentence) in [
        (json!(20), "_sdrt is 20; expected an object"),
        (json!({"steps": 20}), "_sdrt.steps is 20; no such default; there are num_inference_steps and"),
        (json!({"num_inference_steps": 0}), "_sdrt.num_inference_steps is 0; expected a whole number from 1"),
        (json!({"num_inference_steps": 2.5}), "_sdrt.num_inference_steps is 2.5; expected a whole number"),
        (json!({"guidance_scale": "high"}), "_sdrt.guidance_scale is \"high\"; expected a number"),
        (json!({"guidance_scale": -1}), "_sdrt.guidance_scale is -1; expected a number from 0 on"),
        (json!({"guidance_scale": 1e300}), "_sdrt.guidance_scale is 1e+300; expected a number from 0 on"),
    ] {
        assert_refused(describe(&defaults), &["model_index.json: ", sentence]);
    }
}
