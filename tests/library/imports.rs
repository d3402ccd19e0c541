//! The modules of src/ form layers: imports have one direction, in every folder and between the top-level modules.
//!
//! The rule. The nodes of a folder are its files and its subfolders, each subfolder as a whole; its `mod.rs` is a file
//! like the others, and so is `lib.rs` among the top-level modules. A file points to the file that defines an item it
//! names: re-exports are followed to there, and of a glob those names count that the file uses. So nothing points to a
//! `mod.rs` that only declares and re-exports, and it points nowhere. Unit tests (`#[cfg(test)]`), comments and methods
//! do not count, and neither do two kinds of arrows between a `mod.rs` and the files beside it:
//!
//! - from a file to a type of the `mod.rs` for which it has an `impl` block: it is a part of that type, whose methods
//!   are spread over files by what they are about;
//! - any in [`EDGES`], where a `mod.rs` both holds what handlers and commands share and puts these together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The folders, with those in them, whose `mod.rs` is no node.
const EDGES: [&str; 2] = ["cli", "serve"];

/// The path of a module or an item from the root of the crate: `["ops", "tensor", "Tensor"]`.
type Names = Vec<String>;

/// Words and punctuation of Rust code without comments, strings and unit tests.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut tokens, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let c = chars[i];
        let word = |c: char| c.is_alphanumeric() || c == '_';
        // The hashes of a raw string, r#"..."#, that begins here.
        let raw = |from: usize| {
            let hashes = (from..).take_while(|&i| at(i) == '#').count();
            (at(from + hashes) == '"').then_some(hashes)
        };
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            i += 2;
            while i < chars.len() && !(at(i) == '*' && at(i + 1) == '/') {
                i += 1;
            }
            i += 2;
        } else if let (true, Some(hashes)) = (c == 'r', raw(i + 1)) {
            i += hashes + 2;
            while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                i += 1;
            }
            i += hashes + 1;
        } else if c == '"' {
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push("::".to_string());
            i += 2;
        } else if word(c) {
            let length = chars[i..].iter().take_while(|&&c| word(c)).count();
            // A byte string's b, and a raw byte string's br, stand for nothing.
            match (&chars[i..i + length], at(i + length)) {
                (['b'], '"' | '\'') => {}
                (['b', 'r'], '"' | '#') => {
                    i += 1;
                    continue;
                }
                (name, _) => tokens.push(name.iter().collect()),
            }
            i += length;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            i += 1;
        }
    }
    without_tests(&tokens)
}

/// The end of the item that begins at `start`: behind its semicolon or its closing brace.
fn item_end(tokens: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 && (token == ";" || token == "}") {
            return i + 1;
        }
    }
    tokens.len()
}

fn without_tests(tokens: &[String]) -> Vec<String> {
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if tokens[i..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"].map(String::from)) {
            i = item_end(tokens, i + 7);
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

/// One name of a `use`: its path as written, and what it is called here (`*` for a glob).
struct Import {
    path: Names,
    name: String,
}

/// The names of the tree of a `use` that begins at `i`; moves `i` behind it.
fn use_tree(tokens: &[String], i: &mut usize, before: &[String], imports: &mut Vec<Import>) {
    let mut path = before.to_vec();
    loop {
        match tokens[*i].as_str() {
            "{" => {
                *i += 1;
                while tokens[*i] != "}" {
                    use_tree(tokens, i, &path, imports);
                    *i += usize::from(tokens[*i] == ",");
                }
                *i += 1;
                return;
            }
            "::" => {}
            "self" if !path.is_empty() => {}
            name => path.push(name.to_string()),
        }
        *i += 1;
        if tokens[*i] != "::" && tokens[*i - 1] != "::" {
            break;
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if tokens[*i] == "as" {
        name = tokens[*i + 1].clone();
        *i += 2;
    }
    if name == "*" {
        path.pop();
    }
    imports.push(Import { path, name });
}

/// A file of the crate.
#[derive(Default)]
struct Module {
    /// Its own path, which for `ops/mod.rs` is that of `ops`.
    names: Names,
    file: String,
    /// Whether it is the `mod.rs` of a folder.
    is_folder: bool,
    imports: Vec<Import>,
    /// The names that are defined in it, outside all braces.
    defined: BTreeSet<String>,
    /// The types that it has `impl` blocks for.
    extended: BTreeSet<String>,
    /// All words in it outside of imports.
    words: BTreeSet<String>,
    /// Paths that begin with `crate`, `super`, `self` or `sdrt`, outside of imports.
    paths: Vec<Names>,
}

impl Module {
    fn parse(names: Names, file: String, is_folder: bool, source: &str) -> Module {
        let tokens = tokens(source);
        let mut module = Module { names, file, is_folder, ..Module::default() };
        let (mut i, mut depth) = (0, 0);
        while i < tokens.len() {
            match tokens[i].as_str() {
                "use" => {
                    i += 1;
                    use_tree(&tokens, &mut i, &[], &mut module.imports);
                    continue;
                }
                "{" => depth += 1,
                "}" => depth -= 1,
                "struct" | "enum" | "union" | "trait" | "fn" | "const" | "static" | "type" if depth == 0 => {
                    module.defined.insert(tokens[i + 1].clone());
                }
                "impl"
                    if depth == 0
                        && (i == 0 || ["}", ";", "]", "unsafe"].contains(&tokens[i - 1].as_str())) =>
                {
                    module.extended.extend(implemented(&tokens[i + 1..]))
                }
                // Where an item is visible is no import.
                "in" if i > 0 && tokens[i - 1] == "(" => i = item_end_of_path(&tokens, i + 1),
                "crate" | "super" | "self" | "sdrt" if tokens.get(i + 1).is_some_and(|next| next == "::") => {
                    let end = item_end_of_path(&tokens, i);
                    module
                        .paths
                        .push(tokens[i..end].iter().filter(|token| *token != "::").cloned().collect());
                    i = end - 1;
                }
                word => {
                    module.words.insert(word.to_string());
                    // A path from here, such as `ddim::table`: it counts if a module of this name is below.
                    if tokens.get(i + 1).is_some_and(|next| next == "::") && (i == 0 || tokens[i - 1] != "::")
                    {
                        let end = item_end_of_path(&tokens, i);
                        let path = tokens[i..end].iter().filter(|token| *token != "::").cloned();
                        module.paths.push(std::iter::once("self".to_string()).chain(path).collect());
                    }
                }
            }
            i += 1;
        }
        module
    }
}

/// The type of the `impl` block whose head these tokens begin with: the last name outside of all brackets, behind `for`
/// if there is one.
fn implemented(tokens: &[String]) -> Option<String> {
    let (mut depth, mut name) = (0, None);
    for token in tokens {
        match token.as_str() {
            "<" | "(" | "[" => depth += 1,
            ">" | ")" | "]" => depth -= 1,
            "{" | "where" => break,
            token if depth == 0 && token.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                name = Some(token.to_string())
            }
            _ => {}
        }
    }
    name
}

/// The end of the path `a::b::c` that begins at `start`.
fn item_end_of_path(tokens: &[String], start: usize) -> usize {
    let is_name = |token: &String| token.chars().all(|c| c.is_alphanumeric() || c == '_');
    let mut end = start + 1;
    while end + 1 < tokens.len() && tokens[end] == "::" && is_name(&tokens[end + 1]) {
        end += 2;
    }
    end
}

/// The files of a crate by the paths of their modules.
struct Crate(BTreeMap<Names, Module>);

impl Crate {
    fn read(src: &Path) -> Crate {
        let mut modules = Crate(BTreeMap::new());
        modules.read_folder(src, &[]);
        modules
    }

    fn read_folder(&mut self, folder: &Path, names: &[String]) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_string();
            let mut inner = names.to_vec();
            if path.is_dir() {
                inner.push(stem);
                self.read_folder(&path, &inner);
            } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "main" {
                let is_folder = stem == "mod" || stem == "lib";
                if !is_folder {
                    inner.push(stem);
                }
                let source = fs::read_to_string(&path).unwrap();
                self.add(inner, path.display().to_string(), is_folder, &source);
            }
        }
    }

    fn add(&mut self, names: Names, file: String, is_folder: bool, source: &str) {
        self.0.insert(names.clone(), Module::parse(names, file, is_folder, source));
    }

    /// The path from the root of the crate of one that stands in a module; none for another crate's.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Names> {
        let mut names = match path[0].as_str() {
            "crate" | "sdrt" => Vec::new(),
            "self" | "super" => module.names.clone(),
            // A child of this module, or a name that an import gives.
            first => {
                let child = [&module.names[..], &[first.to_string()]].concat();
                let imported =
                    module.imports.iter().any(|import| import.name == first && import.path[0] != first);
                return (self.0.contains_key(&child) || imported).then(|| [&module.names[..], path].concat());
            }
        };
        for name in path {
            match name.as_str() {
                "super" => drop(names.pop()),
                "self" | "crate" | "sdrt" => {}
                name => names.push(name.to_string()),
            }
        }
        Some(names)
    }

    /// The module that defines what stands at a path from the root.
    fn home(&self, path: &[String]) -> Option<&Module> {
        let mut known = 0;
        while known < path.len() && self.0.contains_key(&path[..=known]) {
            known += 1;
        }
        let module = self.0.get(&path[..known])?;
        let Some(name) = path.get(known) else { return Some(module) };
        if module.defined.contains(name) {
            return Some(module);
        }
        for import in &module.imports {
            let Some(source) = self.absolute(module, &import.path) else { continue };
            if source[..] == path[..source.len().min(path.len())] && import.name == *name {
                continue;
            }
            if import.name == *name {
                return self.home(&[&source, &path[known + 1..]].concat());
            }
            if import.name == "*" && self.0.get(&source).is_some_and(|there| there.defined.contains(name)) {
                return self.home(&source);
            }
        }
        Some(module)
    }

    /// The modules whose items a module names, each with one of the names.
    fn arrows(&self, module: &Module) -> Vec<(&Module, String)> {
        let mut arrows = Vec::new();
        let mut point = |path: Option<Names>| {
            if let Some(path) = path
                && let Some(home) = self.home(&path)
                && home.names != module.names
                && !is_part(module, home, path.last())
            {
                arrows.push((home, path.join("::")));
            }
        };
        for import in &module.imports {
            let Some(path) = self.absolute(module, &import.path) else { continue };
            if import.name == "*" {
                let Some(source) = self.0.get(&path) else { continue };
                let offered = source.defined.iter().chain(source.imports.iter().map(|import| &import.name));
                for name in offered.filter(|name| module.words.contains(*name)) {
                    point(Some([&path[..], std::slice::from_ref(name)].concat()));
                }
            } else if module.words.contains(&import.name) || import.name == "_" {
                point(Some(path));
            }
        }
        for path in &module.paths {
            let path = self.absolute(module, path).filter(|path| self.0.contains_key(&path[..1]));
            point(path.filter(|path| path[..] != module.names[..]));
        }
        arrows
    }

    /// A circle in each folder that has one, as its arrows.
    fn circles(&self) -> Vec<String> {
        // By folder: from node to node, with the arrow that shows it.
        let mut folders: BTreeMap<Names, BTreeMap<String, BTreeMap<String, String>>> = BTreeMap::new();
        for module in self.0.values() {
            for (home, item) in self.arrows(module) {
                let file = |module: &Module| match module.is_folder {
                    true => [&module.names[..], &["mod".to_string()]].concat(),
                    false => module.names.clone(),
                };
                let (from, to) = (file(module), file(home));
                let is_edge = from.first().is_some_and(|first| EDGES.contains(&first.as_str()));
                if is_edge && [&from, &to].iter().any(|path| path.last().is_some_and(|last| last == "mod")) {
                    continue;
                }
                let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                let arrow = format!("{} names {item} of {}", module.file, home.file);
                let nodes = folders.entry(from[..shared].to_vec()).or_default();
                nodes.entry(from[shared].clone()).or_default().entry(to[shared].clone()).or_insert(arrow);
            }
        }
        folders.values().filter_map(circle).collect()
    }
}

/// Whether a module extends the type `name` of the `mod.rs` in its folder or in one around it.
fn is_part(module: &Module, home: &Module, name: Option<&String>) -> bool {
    let inside = home.is_folder && module.names.starts_with(&home.names);
    inside && name.is_some_and(|name| module.extended.contains(name))
}

/// A circle of a graph, as the arrows of it.
fn circle(graph: &BTreeMap<String, BTreeMap<String, String>>) -> Option<String> {
    let mut shortest: Option<Vec<&str>> = None;
    for start in graph.keys() {
        // Breadth first from `start` back to it.
        let mut paths: Vec<Vec<&str>> = vec![vec![start]];
        let mut seen = BTreeSet::new();
        let mut next = 0;
        while next < paths.len() {
            let path = paths[next].clone();
            next += 1;
            for to in graph.get(*path.last().unwrap()).into_iter().flat_map(|edges| edges.keys()) {
                let path = [&path[..], &[to.as_str()]].concat();
                if to == start {
                    if shortest.as_ref().is_none_or(|other| path.len() < other.len()) {
                        shortest = Some(path);
                    }
                } else if seen.insert(to) {
                    paths.push(path);
                }
            }
        }
    }
    let arrows: Vec<&str> = shortest?.windows(2).map(|pair| graph[pair[0]][pair[1]].as_str()).collect();
    Some(arrows.join("\n"))
}

#[test]
fn imports_go_in_one_direction() {
    let modules = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let pipeline = &modules.0[&["pipeline".to_string()][..]];
    assert!(modules.arrows(pipeline).iter().any(|(home, _)| home.names[..] == ["ops"]), "nothing was read");
    let circles = modules.circles();
    assert!(circles.is_empty(), "import circles:\n{}", circles.join("\n\n"));
}

/// The circles of a crate of these files, by their modules; a name that ends in `/` is the `mod.rs` of a folder.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let mut modules = Crate(BTreeMap::new());
    modules.add(Vec::new(), "lib".into(), true, "");
    for (name, source) in files {
        let names = name.split('/').filter(|name| !name.is_empty()).map(String::from).collect();
        modules.add(names, name.to_string(), name.ends_with('/'), source);
    }
    modules.circles()
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let b = ("b", "use crate::a::A; pub struct B(A);");
    for a in [
        "use crate::b::B; pub struct A(B);",
        "use super::b::*; pub struct A(Box<B>);",
        "use crate::{b::{self}}; pub struct A(b::B);",
        "use crate::b::B as Other; pub struct A(Other);",
        "pub struct A(crate::b::B);",
        "pub struct A; fn quoted() -> [char; 3] { ['\"', '\\'', '\\\\'] } fn b(_: crate::b::B) {}",
    ] {
        let found = circles_of(&[("a", a), b]);
        assert!(found.len() == 1 && found[0].ends_with("of b\nb names a::A of a"), "{a}: {found:?}");
    }
    // Through a re-export, between folders, and of three.
    let deep = [
        ("a/", "pub use self::inner::A; mod inner;"),
        ("a/inner", "use crate::b::B; pub struct A(B);"),
        ("b", "use crate::c::C; pub struct B(C);"),
        ("c", "use crate::a::A; pub struct C(A);"),
    ];
    let found = circles_of(&deep);
    assert_eq!(found, ["a/inner names b::B of b\nb names c::C of c\nc names a::A of a/inner"]);
    // A mod.rs and a file beside it, named by a path without `use`.
    let parent = ("a/", "mod inner; pub struct A; fn call() { inner::run() }");
    let found = circles_of(&[parent, ("a/inner", "use super::A; pub fn run(_: A) {}")]);
    assert_eq!(found, ["a/inner names a::A of a/\na/ names a::inner::run of a/inner"]);
}

#[test]
fn what_is_no_import_makes_no_circle() {
    let b = ("b", "use crate::a::A; pub struct B(A);");
    for a in [
        "pub struct A;",
        "pub struct A; // crate::b::B",
        "/* use crate::b::B; */ pub struct A; const TEXT: &str = \"crate::b::B\"; const RAW: &str = r#\"\" crate::b::B\"#;",
        "pub struct A; #[cfg(test)] mod tests { use crate::b::B; fn b(_: B) {} }",
        "use other::b::B; pub struct A(B);",
        "pub(in crate::b) struct A;",
    ] {
        assert!(circles_of(&[("a", a), b]).is_empty(), "{a}: {:?}", circles_of(&[("a", a), b]));
    }
    // A mod.rs that re-exports, one whose type has a part in another file, and one at the edge.
    let inner = "use super::B; pub struct A(B);";
    assert!(
        circles_of(&[
            ("a/", "pub use inner::A; pub use b::B;"),
            ("a/inner", inner),
            ("a/b", "pub struct B;")
        ])
        .is_empty()
    );
    let part = ("a/part", "use super::A; pub struct Part; impl A { pub fn run(&self) {} }");
    assert!(circles_of(&[("a/", "use self::part::Part; pub struct A(Part);"), part]).is_empty());
    let other = ("a/part", "use super::A; pub struct Part(A); impl From<A> for Part {}");
    assert_eq!(circles_of(&[("a/", "use self::part::Part; pub struct A(Box<Part>);"), other]).len(), 1);
    assert!(
        circles_of(&[
            ("cli/", "use run::Run; pub struct A(Run);"),
            ("cli/run", "use super::A; pub struct Run(Box<A>);")
        ])
        .is_empty()
    );
}
