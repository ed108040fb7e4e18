//! The images' records: names for descriptors.

use std::{borrow::Cow, time::SystemTime};

use prost::Message;

use super::{
    key,
    leases::{self, Resource},
    namespaces,
    record::{self, checked, decode},
    rows::{Changes, Rows, Table, View},
    store::Store,
};
use crate::{
    digest::Digest,
    error::Error,
    field_mask::{Path, set_entry},
    filter::{self, Fields, Filter},
    labels::Labels,
    namespace::{Namespace, Scope},
    oci::Descriptor,
};

/// A name for an image, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name: any text that is not empty, usually a reference.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The root of the image: an index or a manifest. Only media type, digest, size and
    /// annotations are kept.
    pub target: Descriptor,
    /// When the name was made.
    pub created: SystemTime,
    /// When it was last changed.
    pub updated: SystemTime,
}

/// What [`Store::delete_image`] deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteImage {
    /// The name.
    pub name: String,
    /// Only if the name stands for this.
    pub target: Option<Digest>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(sint64, tag = "2")]
    created: i64,
    #[prost(sint64, tag = "3")]
    updated: i64,
    #[prost(string, tag = "4")]
    media_type: String,
    #[prost(string, tag = "5")]
    digest: String,
    #[prost(uint64, tag = "6")]
    size: u64,
    #[prost(btree_map = "string, string", tag = "7")]
    annotations: Labels,
}

impl View {
    /// The image `name`.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Result<Image, Error> {
        load(self, namespace, name)?.ok_or_else(|| not_found(name))
    }
}

impl Store {
    /// The image `name`.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Result<Image, Error> {
        self.read(|view| view.image(namespace, name))
    }

    /// The images that `filter` selects, by name.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`.
    pub fn images(&self, namespace: &Namespace, filter: &Filter) -> Result<Vec<Image>, Error> {
        self.read(|view| record::select(view, Table::Images, namespace, filter, from_record))
    }

    /// Gives a new name to an image. Times are those of the call, or the one in `created`.
    ///
    /// An image that expires is added to the scope's lease; others need none, for they are kept.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: name, labels or target are no good.
    /// - `AlreadyExists`: the name is taken.
    /// - `NotFound`: there is no such lease.
    pub fn create_image(&self, scope: &Scope, image: Image) -> Result<Image, Error> {
        let image = valid(image)?;
        self.write(|changes| {
            namespaces::ensure(changes, &scope.namespace)?;
            lease(changes, scope, &image)?;
            if load(changes, &scope.namespace, &image.name)?.is_some() {
                return Err(Error::AlreadyExists(format!("image {:?}", image.name)));
            }
            put(changes, &scope.namespace, &image);
            Ok(image)
        })
    }

    /// Changes what `mask` names of the image that `new` names; without a mask everything.
    ///
    /// # Errors
    ///
    /// - `NotFound`: there is no such image or lease.
    /// - `InvalidArgument`: a path cannot be updated, or the result is no good.
    pub fn update_image(
        &self,
        scope: &Scope,
        new: &Image,
        mask: &[String],
    ) -> Result<Image, Error> {
        if new.name.is_empty() {
            let message = "image name is required for update";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        self.write(|changes| {
            let old = load(changes, &scope.namespace, &new.name)?;
            let old = old.ok_or_else(|| not_found(&new.name))?;
            let mut image = if mask.is_empty() { new.clone() } else { old.clone() };
            for path in mask {
                apply(path, &mut image, new)?;
            }
            image.created = old.created;
            image.updated = new.updated;
            let image = valid(image)?;
            lease(changes, scope, &image)?;
            put(changes, &scope.namespace, &image);
            Ok(image)
        })
    }

    /// Deletes a name.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such name, or it stands for something else.
    pub fn delete_image(&self, scope: &Scope, delete: &DeleteImage) -> Result<(), Error> {
        let DeleteImage { name, target } = delete;
        self.write(|changes| {
            let image = load(changes, &scope.namespace, name)?.ok_or_else(|| not_found(name))?;
            if let Some(want) = target
                && image.target.digest != *want
            {
                let found = &image.target.digest;
                return Err(Error::NotFound(format!(
                    "image {name:?} has target {found}, not {want}"
                )));
            }
            leases::release(changes, scope, &Resource::image(name));
            changes.remove(Table::Images, &key::of(&scope.namespace, name));
            Ok(())
        })
    }
}

impl Fields for Image {
    fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("name", _) => filter::value(&self.name),
            ("target", [field, ..]) => match field.as_str() {
                "digest" => Some(Cow::Owned(self.target.digest.to_string())),
                "mediatype" => filter::value(&self.target.media_type),
                _ => None,
            },
            ("labels", key) => filter::entry(&self.labels, key),
            ("annotations", key) => filter::entry(&self.target.annotations, key),
            _ => None,
        }
    }
}

fn apply(path: &str, image: &mut Image, new: &Image) -> Result<(), Error> {
    match Path::parse(path) {
        Path::Entry("labels", key) => set_entry(&mut image.labels, key, &new.labels),
        Path::Entry("annotations", key) => {
            set_entry(&mut image.target.annotations, key, &new.target.annotations);
        }
        Path::Field("labels") => image.labels.clone_from(&new.labels),
        Path::Field("target") => image.target.clone_from(&new.target),
        Path::Field("annotations") => {
            image.target.annotations.clone_from(&new.target.annotations);
        }
        _ => {
            let name = &image.name;
            let message = format!("cannot update {path:?} field on image {name:?}");
            return Err(Error::InvalidArgument(message));
        }
    }
    Ok(())
}

fn valid(mut image: Image) -> Result<Image, Error> {
    let invalid = |message: &str| Err(Error::InvalidArgument(message.to_owned()));
    if image.name.is_empty() {
        return invalid("image name must not be empty");
    }
    image.labels = checked("image.Labels", image.labels)?;
    if image.target.size == 0 {
        return invalid("target.Size must be greater than zero");
    }
    if image.target.media_type.is_empty() {
        return invalid("target.MediaType must be set");
    }
    Ok(image)
}

fn lease(changes: &mut Changes<'_>, scope: &Scope, image: &Image) -> Result<(), Error> {
    if image.labels.contains_key(crate::gc::EXPIRE) {
        leases::add(changes, scope, &Resource::image(&image.name))?;
    }
    Ok(())
}

fn load(rows: &impl Rows, namespace: &Namespace, name: &str) -> Result<Option<Image>, Error> {
    let value = rows.get(Table::Images, &key::of(namespace, name))?;
    value.map(|value| from_record(name, &value)).transpose()
}

pub(super) fn from_record(name: &str, value: &[u8]) -> Result<Image, Error> {
    let what = || format!("image {name:?}");
    let record: Record = decode(what, value)?;
    Ok(Image {
        name: name.to_owned(),
        labels: record.labels,
        target: Descriptor {
            media_type: record.media_type,
            digest: record::digest(what, &record.digest)?,
            size: record.size,
            platform: None,
            annotations: record.annotations,
            urls: Vec::new(),
        },
        created: record::time(record.created),
        updated: record::time(record.updated),
    })
}

fn put(changes: &mut Changes<'_>, namespace: &Namespace, image: &Image) {
    let record = Record {
        labels: image.labels.clone(),
        created: record::nanoseconds(image.created),
        updated: record::nanoseconds(image.updated),
        media_type: image.target.media_type.clone(),
        digest: image.target.digest.to_string(),
        size: image.target.size,
        annotations: image.target.annotations.clone(),
    };
    changes.put(Table::Images, &key::of(namespace, &image.name), record.encode_to_vec());
}

fn not_found(name: &str) -> Error {
    Error::NotFound(format!("image {name:?}"))
}
