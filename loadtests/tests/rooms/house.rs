//! What the files of a crate name, read from their sources.
//!
//! Must not know: what is allowed.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::Visit;
use syn::{ItemMod, ItemUse, UseTree, Visibility};

pub(crate) type Module = Vec<String>;

/// The modules of a crate by their paths.
#[derive(Default)]
pub(crate) struct House {
    pub(crate) files: BTreeMap<Module, File>,
}

/// What a module's file says of itself and names.
#[derive(Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// Its header, on one line.
    pub(crate) header: String,
    /// Paths that begin at another crate, as they stand.
    pub(crate) foreign: BTreeSet<Module>,
    /// Paths as they stand, absolute in the crate.
    pub(crate) named: BTreeSet<Module>,
    /// What another name stands for here.
    faces: BTreeMap<String, Module>,
}

impl House {
    /// Reads all files below `root` but tests.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut house = Self::default();
        let mut dirs = vec![(root.to_owned(), Vec::new())];
        while let Some((dir, module)) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                if stem == "tests" || stem.ends_with("_tests") || stem == "bin" {
                    continue;
                }
                let mut inner: Module = module.clone();
                if path.is_dir() {
                    inner.push(stem.into_owned());
                    dirs.push((path, inner));
                    continue;
                }
                if path.extension().is_none_or(|kind| kind != "rs") {
                    continue;
                }
                let is_root = module.is_empty() && (stem == "lib" || stem == "main");
                if !is_root && stem != "mod" {
                    inner.push(stem.into_owned());
                }
                let text = std::fs::read_to_string(&path)?;
                let parsed = syn::parse_file(&text).with_context(|| path.display().to_string())?;
                let mut reader = Reader {
                    module: inner.clone(),
                    file: File::default(),
                };
                reader.file.path.clone_from(&path);
                reader.file.header = header(&parsed);
                reader.visit_file(&parsed);
                house.files.insert(inner, reader.file);
            }
        }
        Ok(house)
    }

    /// Which file a path leads to, through faces.
    fn file_of(&self, path: &[String], depth: u32) -> Option<&Module> {
        let length = (0..=path.len())
            .rev()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, file) = self.files.get_key_value(&path[..length])?;
        let face = path.get(length).and_then(|name| file.faces.get(name));
        match face {
            Some(target) if depth < 8 => {
                let mut target = target.clone();
                target.extend_from_slice(&path[length + 1..]);
                self.file_of(&target, depth + 1).or(Some(module))
            }
            Some(_) | None => Some(module),
        }
    }

    /// For each folder of modules: which of its rooms names what lies in which other. What a room takes of the module around it,
    /// and that of its rooms, is no import of a neighbour.
    pub(crate) fn levels(&self) -> BTreeMap<Module, BTreeMap<Module, BTreeSet<Module>>> {
        let mut levels: BTreeMap<Module, BTreeMap<Module, BTreeSet<Module>>> = BTreeMap::new();
        for (module, file) in &self.files {
            for other in file.named.iter().filter_map(|path| self.file_of(path, 0)) {
                let common = module.iter().zip(other).take_while(|(a, b)| a == b).count();
                if module.len() > common && other.len() > common {
                    let level = levels.entry(module[..common].to_vec()).or_default();
                    let rooms = level.entry(module[..=common].to_vec()).or_default();
                    rooms.insert(other[..=common].to_vec());
                }
            }
        }
        levels
    }
}

struct Reader {
    module: Module,
    file: File,
}

impl Reader {
    /// A path of this crate as seen from its root, or nothing.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            _ => return None,
        };
        for part in &path[1..] {
            if part == "super" {
                at.pop()?;
            } else {
                at.push(part.clone());
            }
        }
        Some(at)
    }

    fn leaves(tree: &UseTree, before: &[String], out: &mut Vec<(String, Module)>) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            UseTree::Path(path) => Self::leaves(&path.tree, &with(&path.ident), out),
            UseTree::Name(name) if name.ident == "self" => {
                let last = before.last().cloned().unwrap_or_default();
                out.push((last, before.to_vec()));
            }
            UseTree::Name(name) => out.push((name.ident.to_string(), with(&name.ident))),
            UseTree::Rename(rename) => out.push((rename.rename.to_string(), with(&rename.ident))),
            UseTree::Glob(_) => out.push(("*".to_owned(), before.to_vec())),
            UseTree::Group(group) => {
                for tree in &group.items {
                    Self::leaves(tree, before, out);
                }
            }
        }
    }
}

impl Visit<'_> for Reader {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        let is_test = item.attrs.iter().any(|attr| {
            attr.path().is_ident("cfg")
                && matches!(&attr.meta, syn::Meta::List(list) if list.tokens.to_string() == "test")
        });
        if is_test || item.content.is_none() {
            return;
        }
        self.module.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        let mut leaves = Vec::new();
        Self::leaves(&item.tree, &[], &mut leaves);
        let is_face = !matches!(item.vis, Visibility::Inherited);
        for (name, path) in leaves {
            // A child module may be named without `self`.
            let child = || [&["self".to_owned()], &path[..]].concat();
            let absolute = self.absolute(&path).or_else(|| self.absolute(&child()));
            if self.absolute(&path).is_none() {
                self.file.foreign.insert(path);
            }
            let Some(absolute) = absolute else { continue };
            if is_face {
                self.file.faces.insert(name, absolute);
            } else {
                self.file.named.insert(absolute);
            }
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        let child = || [&["self".to_owned()], &parts[..]].concat();
        let inner = || (parts.len() > 1).then(|| self.absolute(&child())).flatten();
        if let Some(absolute) = self.absolute(&parts).or_else(inner) {
            self.file.named.insert(absolute);
        }
        if self.absolute(&parts).is_none() && parts.len() > 1 {
            self.file.foreign.insert(parts);
        }
        syn::visit::visit_path(self, path);
    }
}

/// The doc comment of a file, on one line.
fn header(file: &syn::File) -> String {
    let mut text = String::new();
    for attr in file.attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        if let syn::Meta::NameValue(value) = &attr.meta
            && let syn::Expr::Lit(literal) = &value.value
            && let syn::Lit::Str(line) = &literal.lit
        {
            text.push_str(&line.value());
            text.push(' ');
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
