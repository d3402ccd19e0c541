//! Models by their ids, from a hub on loopback.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use sdrt::hub::{self, Id, Settings};
use sdrt::location::Location;
use serde_json::json;
use server::{Behaviour, COMMIT, ID, Server, etag, sha256};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const NEEDED: [&str; 12] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "vae/config.json",
    "unet/config.json",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    UNET,
];

fn tiny() -> Behaviour {
    let root = std::env::var_os("SDRT_ROOT").map_or(PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    Behaviour::folder(&root.join("models/tiny"))
}

/// A home for a cache.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Home(tempfile::tempdir().unwrap())
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings {
            endpoint: Some(server.endpoint()),
            cache: self.cache(),
            token: None,
            certificates: None,
            offline: false,
            pause: Duration::from_millis(1),
        }
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("hub")
    }

    fn model(&self) -> PathBuf {
        self.cache().join("models--someone--tiny")
    }

    fn snapshot(&self) -> PathBuf {
        self.model().join("snapshots").join(COMMIT)
    }

    fn fetch(&self, server: &Server, id: &str) -> Result<PathBuf, String> {
        fetch(&self.settings(server), id)
    }

    /// `sdrt` with no settings but those for this home and the server.
    fn sdrt(&self, server: &Server, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let binary = std::env::var_os("SDRT_BIN").unwrap_or(env!("CARGO_BIN_EXE_sdrt").into());
        let mut command = Command::new(binary);
        let inherited = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy().to_uppercase();
            !name.starts_with("HF_") && !name.starts_with("HUGGING") && !name.ends_with("_PROXY")
        });
        command.env_clear().envs(inherited).env("HF_HOME", self.0.path());
        command.env("HF_ENDPOINT", server.endpoint()).envs(variables.iter().copied());
        command.args(args).current_dir(self.0.path()).output().unwrap()
    }
}

fn fetch(settings: &Settings, id: &str) -> Result<PathBuf, String> {
    let id = Id::parse(id).expect("an id");
    match hub::fetch_with(settings, &id, &mut |_| ()) {
        Ok(Location::Disk(path)) => Ok(path),
        Ok(location) => panic!("{location} is not on disk"),
        Err(error) => Err(error.to_string()),
    }
}

#[track_caller]
fn assert_refused(result: Result<PathBuf, String>, sentence: &str) {
    let error = result.expect_err("refused");
    assert!(error.starts_with("someone/tiny") && error.contains(sentence), "{error:?}, not {sentence:?}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_downloaded_painted_and_then_needs_no_network() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    let small = ["--device", "cpu", "--steps", "1", "--width", "64", "--height", "64", "--seed", "1"];
    let run = |args: &[&'static str], variables: &[(&str, &str)]| {
        let run = [&["run", "--model", ID, "--prompt", "a lighthouse"], &small[..], args].concat();
        home.sdrt(&server, &run, variables)
    };
    let output = run(&["-o", "a.png"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("downloading someone/tiny, 2.6 MB"), "{}", stderr(&output));
    assert_eq!(server.asked_files(), NEEDED);

    let output = run(&["-o", "b.png", "--json"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["model"], ID);
    let [a, b] = ["a.png", "b.png"].map(|name| fs::read(home.0.path().join(name)).unwrap());
    assert!(a == b && String::from_utf8_lossy(&a).contains("Model: tiny,"));

    let output = home.sdrt(&server, &["info", ID], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.asked(), []);
}

#[test]
fn the_cache_is_laid_out_as_pythons_client_lays_it_out() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    assert_eq!(home.fetch(&server, ID).unwrap(), home.snapshot());
    assert_eq!(fs::read_to_string(home.model().join("refs/main")).unwrap(), COMMIT);
    let mut blobs = Vec::new();
    for (path, bytes) in tiny().files.iter().filter(|(path, _)| NEEDED.contains(&path.as_str())) {
        let etag = etag(path, bytes);
        assert!(fs::read(home.snapshot().join(path)).unwrap() == *bytes, "{path}");
        #[cfg(unix)]
        {
            let up = if path.contains('/') { "../../../blobs" } else { "../../blobs" };
            let target = fs::read_link(home.snapshot().join(path)).unwrap();
            assert_eq!(target, Path::new(up).join(&etag), "{path}");
        }
        blobs.push(etag);
    }
    blobs.sort();
    assert_eq!(entries(&home.model().join("blobs")), blobs);
    let locks = entries(&home.cache().join(".locks/models--someone--tiny"));
    assert_eq!(locks, blobs.iter().map(|etag| format!("{etag}.lock")).collect::<Vec<_>>());
}

#[test]
fn a_revision_is_noted_and_its_commit_needs_no_network() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    assert_eq!(home.fetch(&server, "someone/tiny@refs/pr/7").unwrap(), home.snapshot());
    assert_eq!(fs::read_to_string(home.model().join("refs/refs/pr/7")).unwrap(), COMMIT);
    server.asked();
    for id in ["someone/tiny@refs/pr/7".to_string(), format!("someone/tiny@{COMMIT}")] {
        assert_eq!(home.fetch(&server, &id).unwrap(), home.snapshot());
    }
    assert_eq!(server.asked(), []);
    // Another branch may be another commit, and is not here.
    home.fetch(&server, ID).unwrap();
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn variables_say_where_the_cache_is() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    let other = home.0.path().join("other");
    let output = home.sdrt(&server, &["info", ID], &[("HF_HUB_CACHE", other.to_str().unwrap())]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(other.join("models--someone--tiny/refs/main").is_file() && !home.cache().exists());
}

#[test]
fn half_precision_is_preferred_and_nothing_else_is_asked_for() {
    let tiny = tiny();
    let weights = tiny.files[UNET].clone();
    let server = Server::start(
        tiny.file("unet/diffusion_pytorch_model.fp16.safetensors", &weights)
            .file("unet/diffusion_pytorch_model.bin", b"pickle")
            .file("unet/diffusion_pytorch_model.non_ema.safetensors", b"more")
            .file("safety_checker/model.safetensors", b"more")
            .file("tiny.safetensors", b"more")
            .file("text_encoder/model.onnx", b"more"),
    );
    let home = Home::new();
    home.fetch(&server, ID).unwrap();
    let mut expected = NEEDED.map(String::from);
    expected[11] = "unet/diffusion_pytorch_model.fp16.safetensors".into();
    assert_eq!(server.asked_files(), expected);
}

#[test]
fn shards_are_found_through_their_index() {
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    let shards = ["unet/diffusion_pytorch_model-1.safetensors", "unet/diffusion_pytorch_model-2.safetensors"];
    let map = json!({"weight_map": {"a": &shards[0][5..], "b": &shards[1][5..], "c": &shards[0][5..]}});
    let mut behaviour =
        tiny().file(index, map.to_string().as_bytes()).file(shards[0], b"one").file(shards[1], b"two");
    behaviour.files.remove(UNET);
    let (home, server) = (Home::new(), Server::start(behaviour));
    let snapshot = home.fetch(&server, ID).unwrap();
    assert_eq!(fs::read(snapshot.join(shards[1])).unwrap(), b"two");

    server.asked();
    home.fetch(&server, ID).unwrap();
    assert_eq!(server.asked(), []);
    fs::remove_file(snapshot.join(shards[1])).unwrap();
    home.fetch(&server, ID).unwrap();
    assert!(snapshot.join(shards[1]).is_file());
    server.change(|behaviour| drop(behaviour.files.remove(shards[1])));
    assert_refused(Home::new().fetch(&server, ID), "has no unet/diffusion_pytorch_model-2.safetensors");
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_was() {
    let behaviour = Behaviour { cuts: Some((UNET.into(), 700_000)), ..tiny() };
    let size = behaviour.files[UNET].len();
    let (home, server) = (Home::new(), Server::start(behaviour));
    let mut last = (0, 0);
    let id = Id::parse(ID).unwrap();
    hub::fetch_with(&home.settings(&server), &id, &mut |transfer| {
        assert!(transfer.done >= last.0 && transfer.done <= transfer.bytes, "{}", transfer.file);
        last = (transfer.done, transfer.bytes);
    })
    .unwrap();
    assert_eq!(last.0, last.1);
    let ranges: Vec<_> = server.asked().into_iter().filter(|asked| asked.path.ends_with(UNET)).collect();
    // Each request is led on to the store.
    let starts: Vec<_> = ranges.iter().step_by(2).map(|asked| asked.range.as_deref()).collect();
    assert_eq!(starts, [None, Some("bytes=700000-"), Some("bytes=1400000-")]);
    assert!(ranges.iter().skip(1).step_by(2).map(|asked| asked.range.as_deref()).eq(starts));
    assert_eq!(fs::metadata(home.snapshot().join(UNET)).unwrap().len(), size as u64);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_stopped() {
    let (home, server) =
        (Home::new(), Server::start(Behaviour { stops: Some((UNET.into(), 1000)), ..tiny() }));
    assert_refused(home.fetch(&server, ID), "broke off 5 times");
    let weights = &tiny().files[UNET];
    let partial = home.model().join(format!("blobs/{}.incomplete", sha256(weights)));
    assert!(fs::read(&partial).unwrap() == weights[..1000]);
    assert!(!home.model().join("refs/main").exists());

    server.change(|behaviour| behaviour.stops = None);
    server.asked();
    home.fetch(&server, ID).unwrap();
    let asked = server.asked();
    let paths: Vec<&str> = asked[1..].iter().map(|asked| asked.path.as_str()).collect();
    assert_eq!(paths, [format!("/{ID}/resolve/{COMMIT}/{UNET}"), format!("/store/{UNET}")]);
    assert!(asked[1..].iter().all(|asked| asked.range.as_deref() == Some("bytes=1000-")));
    assert!(!partial.exists() && fs::read(home.snapshot().join(UNET)).unwrap() == *weights);
}

#[test]
fn what_cannot_be_continued_begins_again() {
    let server = Server::start(Behaviour { no_ranges: true, ..tiny() });
    let weights = &tiny().files[UNET];
    for left in [&weights[..1000], &[weights.as_slice(), b"x"].concat()] {
        let home = Home::new();
        fs::create_dir_all(home.model().join("blobs")).unwrap();
        fs::write(home.model().join(format!("blobs/{}.incomplete", sha256(weights))), left).unwrap();
        home.fetch(&server, ID).unwrap();
        assert!(fs::read(home.snapshot().join(UNET)).unwrap() == *weights);
    }
}

#[test]
fn bytes_that_are_not_those_of_the_listing_are_thrown_away() {
    let (home, server) = (Home::new(), Server::start(Behaviour { lies: true, ..tiny() }));
    assert_refused(home.fetch(&server, ID), "has other bytes than the hub lists (sha256 ");
    let left = entries(&home.model().join("blobs"));
    assert!(left.iter().all(|name| !name.contains("incomplete") && name.len() == 40), "{left:?}");

    // A beginning that was damaged on disk.
    let (home, server) = (Home::new(), Server::start(tiny()));
    let partial = home.model().join(format!("blobs/{}.incomplete", sha256(&tiny().files[UNET])));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, [7; 1000]).unwrap();
    assert_refused(home.fetch(&server, ID), "has other bytes than the hub lists");
    home.fetch(&server, ID).unwrap();
}

#[test]
fn a_size_that_does_not_fit_is_refused() {
    let (home, server) = (Home::new(), Server::start(Behaviour { claims: Some(1 << 60), ..tiny() }));
    assert_refused(home.fetch(&server, ID), "needs 3458764513.8 GB more on the disk of ");
    assert!(server.asked_files().iter().all(|file| file == "model_index.json"));
    server.change(|behaviour| behaviour.claims = Some(1000));
    assert_refused(home.fetch(&server, ID), "is longer than the 1000 bytes that the hub lists");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (home, server) = (Home::new(), Server::start(Behaviour { busy: 2, ..tiny() }));
    home.fetch(&server, ID).unwrap();
    let home = Home::new();
    server.change(|behaviour| behaviour.busy = 5);
    assert_refused(home.fetch(&server, ID), "answered 500 to the request for the listing of its files");
}

#[test]
fn refusals_say_what_to_do() {
    let home = Home::new();
    let server = Server::start(Behaviour::default());
    let settings = home.settings(&server);
    let with_token = Settings { token: Some("secret".into()), ..settings.clone() };
    for (refusal, settings, sentence) in [
        ((401, ""), &settings, "no such model on the hub, or one that is private or gated (401)"),
        (
            (401, "GatedRepo"),
            &settings,
            "accept the licence on the model's page, make an access token, and set HF_TOKEN",
        ),
        ((401, ""), &with_token, "your token is not valid"),
        ((403, "GatedRepo"), &with_token, "the account of your token has no access: accept the licence"),
        (
            (404, "RepoNotFound"),
            &settings,
            "no such model on the hub, and no such folder; check the spelling",
        ),
        ((404, "RevisionNotFound"), &settings, "no revision main"),
        ((418, ""), &settings, "answered 418"),
    ] {
        server.change(|behaviour| behaviour.refuses = Some(refusal));
        assert_refused(fetch(settings, ID), sentence);
    }
    assert!(server.asked().iter().any(|asked| asked.authorization.as_deref() == Some("Bearer secret")));

    let pem = home.0.path().join("none.pem");
    fs::write(&pem, "no certificate").unwrap();
    let error = fetch(&Settings { certificates: Some(pem), ..settings.clone() }, ID).unwrap_err();
    assert!(error.ends_with("none.pem: SSL_CERT_FILE names it, and it has no certificate in PEM"), "{error}");

    let offline = Settings { offline: true, ..settings.clone() };
    assert_refused(fetch(&offline, ID), "HF_HUB_OFFLINE forbids downloads");
    drop(server);
    assert_refused(fetch(&settings, ID), "cannot be reached");
}

#[test]
fn a_token_is_for_the_hub_and_not_for_its_store() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    fs::write(home.0.path().join("token"), "from-file\n").unwrap();
    assert!(home.sdrt(&server, &["info", ID, "--json"], &[]).status.success());
    let asked = server.asked();
    let of_store = |path: &str| path.starts_with("/store/");
    assert!(asked.iter().any(|asked| of_store(&asked.path)));
    for asked in &asked {
        let expected = (!of_store(&asked.path)).then_some("Bearer from-file");
        assert_eq!(asked.authorization.as_deref(), expected, "{}", asked.path);
    }
    let output = home.sdrt(&server, &["info", "someone/other"], &[("HF_TOKEN", "from-variable")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: someone/other: no such model on the hub"),
        "{}",
        stderr(&output)
    );
    assert_eq!(server.asked()[0].authorization.as_deref(), Some("Bearer from-variable"));
}

#[test]
fn paths_that_lead_out_of_the_model_are_refused() {
    for path in ["../x", "/etc/x", "unet/../../x", "a\\..\\x", ""] {
        let (home, server) = (Home::new(), Server::start(tiny().file(path, b"x")));
        assert_refused(home.fetch(&server, ID), "a path that leads out of the model; nothing was fetched");
        assert_eq!(entries(&home.cache()), [""; 0]);
    }
}

#[test]
fn a_component_by_itself_is_a_folder_and_then_needs_no_network() {
    let [config, half] = ["config.json", "diffusion_pytorch_model.fp16.safetensors"];
    let all = Behaviour::default().file(config, b"{}").file("diffusion_pytorch_model.safetensors", b"single");
    let (home, server) = (Home::new(), Server::start(all.file(half, b"half").file("a.bin", b"")));
    assert_eq!(home.fetch(&server, ID).unwrap(), home.snapshot());
    assert_eq!(entries(&home.snapshot()), [config, half]);
    let settings = home.settings(&server);
    drop(server);
    assert_eq!(fetch(&settings, ID).unwrap(), home.snapshot());
}

#[test]
fn a_repository_of_checkpoints_gives_the_one_that_is_meant() {
    let one = Behaviour::default().file("a b.safetensors", b"one").file("README.md", b"");
    let (home, server) = (Home::new(), Server::start(one.clone()));
    server.change(|behaviour| drop(behaviour.files.insert("a%20b.safetensors".into(), b"one".into())));
    let file = home.snapshot().join("c.safetensors");
    assert_refused(
        home.fetch(&server, ID),
        "has several checkpoints: a b.safetensors, a%20b.safetensors; name one",
    );

    let server = Server::start(Behaviour::default().file("c.safetensors", b"one"));
    assert_eq!(home.fetch(&server, ID).unwrap(), file);
    // There may be others by now: the hub is asked where it can be.
    server.change(|behaviour| drop(behaviour.files.insert("d.safetensors".into(), b"two".into())));
    assert_refused(home.fetch(&server, ID), "has several checkpoints");
    let named = home.fetch(&server, "someone/tiny:d.safetensors").unwrap();
    assert_eq!(fs::read(named).unwrap(), b"two");
    assert_refused(home.fetch(&server, "someone/tiny:e.safetensors"), "the model has no file e.safetensors");
    server.asked();
    home.fetch(&server, "someone/tiny:c.safetensors").unwrap();
    assert_eq!(server.asked(), []);

    fs::remove_file(home.snapshot().join("d.safetensors")).unwrap();
    let settings = home.settings(&server);
    drop(server);
    assert_eq!(fetch(&settings, ID).unwrap(), file);
    let empty = Server::start(Behaviour::default().file("a.ckpt", b""));
    assert_refused(Home::new().fetch(&empty, ID), "has neither model_index.json nor a .safetensors file");
}

#[test]
fn two_at_once_download_each_file_once() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    let settings = home.settings(&server);
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| fetch(&settings, ID).unwrap()));
        both.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), home.snapshot()));
    });
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.path.starts_with("/store/")).count(), 3, "{asked:?}");
}

#[test]
fn what_exists_is_a_path_whatever_it_looks_like() {
    let (home, server) = (Home::new(), Server::start(tiny()));
    fs::create_dir_all(home.0.path().join("someone/tiny")).unwrap();
    let output = home.sdrt(&server, &["info", ID], &[]);
    assert!(stderr(&output).starts_with("error: someone/tiny: the folder is empty"), "{}", stderr(&output));
    let output = home.sdrt(&server, &["info", "no/such/model"], &[]);
    assert!(stderr(&output).contains("no such model; a model is a .safetensors file"), "{}", stderr(&output));
    assert!(stderr(&output).contains("one of the hub is named owner/name"), "{}", stderr(&output));
    assert_eq!(server.asked(), []);
}
