//! Namespaces, images and containers.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{Any, FieldMask};
use proto::containerd::{
    services::{
        containers::v1::{
            Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
            ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
            UpdateContainerResponse, container::Runtime,
        },
        images::v1::{
            CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
            ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
        },
        namespaces::v1::{
            CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, Namespace,
            UpdateNamespaceRequest, UpdateNamespaceResponse,
        },
    },
    types::Descriptor,
};

use crate::Row;

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

pub(crate) fn digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

pub(crate) fn rows() -> Vec<Row> {
    [
        namespaces(),
        images(),
        image_updates(),
        containers(),
        container_updates(),
        container_refusals(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn namespace(name: &str, pairs: &[(&str, &str)]) -> Option<Namespace> {
    Some(Namespace { name: name.to_owned(), labels: labels(pairs) })
}

fn namespaces() -> Vec<Row> {
    const CREATE: &str = "/containerd.services.namespaces.v1.Namespaces/Create";
    const GET: &str = "/containerd.services.namespaces.v1.Namespaces/Get";
    const UPDATE: &str = "/containerd.services.namespaces.v1.Namespaces/Update";
    const DELETE: &str = "/containerd.services.namespaces.v1.Namespaces/Delete";
    let create = |call, name: &str, pairs: &[(&str, &str)]| {
        Row::new(call, CREATE, &CreateNamespaceRequest { namespace: namespace(name, pairs) })
    };
    let update = |call, name: &str, pairs: &[(&str, &str)], paths: &[&str]| {
        let update_mask = if paths.is_empty() { None } else { mask(paths) };
        let update = UpdateNamespaceRequest { namespace: namespace(name, pairs), update_mask };
        Row::new(call, UPDATE, &update).showing(|bytes| {
            format!("{:?}", UpdateNamespaceResponse::decode(bytes).map(|it| it.namespace))
        })
    };
    let get =
        |call, name: &str| Row::new(call, GET, &GetNamespaceRequest { name: name.to_owned() });
    let delete = |call, name: &str| {
        Row::new(call, DELETE, &DeleteNamespaceRequest { name: name.to_owned() })
    };
    let long = "v".repeat(4096);
    let most = "v".repeat(4095);
    vec![
        create("namespace: create", "one", &[("key", "value")]),
        create("namespace: create again", "one", &[]),
        create("namespace: create without a name", "", &[]),
        create("namespace: create a/b", "a/b", &[]),
        create("namespace: create a--b", "a--b", &[]),
        create("namespace: create -a", "-a", &[]),
        create("namespace: create a.b_c-d", "a.b_c-d", &[]),
        create("namespace: create a name of 76", &"a".repeat(76), &[]),
        create("namespace: create a name of 77", &"a".repeat(77), &[]),
        create("namespace: create with a label of 4097", "long", &[("k", &long)]),
        create("namespace: create with a label of 4096", "most", &[("k", &most)]),
        get("namespace: get", "one"),
        get("namespace: get what is not there", "none"),
        update("namespace: update all", "one", &[("a", "1"), ("b", "2")], &[]),
        update("namespace: update a label", "one", &[("a", "3")], &["labels.a"]),
        update("namespace: update a label away", "one", &[], &["labels.a"]),
        update("namespace: update its name", "one", &[], &["name"]),
        update("namespace: update labels", "one", &[("c", "4")], &["labels"]),
        update("namespace: update what is not there", "made", &[("a", "1")], &["labels.a"]),
        update("namespace: update with a long label", "one", &[("k", &long)], &["labels.k"]),
        delete("namespace: delete", "most"),
        delete("namespace: delete again", "most"),
        delete("namespace: delete a/b", "a/b"),
        delete("namespace: delete without a name", ""),
    ]
}

fn image(name: &str, pairs: &[(&str, &str)]) -> Image {
    Image {
        name: name.to_owned(),
        labels: labels(pairs),
        target: Some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            digest: digest(),
            size: 10,
            annotations: Labels::new(),
        }),
        ..Image::default()
    }
}

fn with_target(change: impl FnOnce(&mut Descriptor)) -> Image {
    let mut image = image("target", &[]);
    change(image.target.as_mut().expect("was just set"));
    image
}

fn images() -> Vec<Row> {
    const CREATE: &str = "/containerd.services.images.v1.Images/Create";
    const GET: &str = "/containerd.services.images.v1.Images/Get";
    const LIST: &str = "/containerd.services.images.v1.Images/List";
    const DELETE: &str = "/containerd.services.images.v1.Images/Delete";
    let create = |call, image: Image| {
        Row::new(call, CREATE, &CreateImageRequest { image: Some(image), source_date_epoch: None })
    };
    let get = |call, name: &str| Row::new(call, GET, &GetImageRequest { name: name.to_owned() });
    let list = |call, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Row::new(call, LIST, &ListImagesRequest { filters }).showing(|bytes| {
            let found = ListImagesResponse::decode(bytes).expect("is a list");
            format!("{:?}", found.images.iter().map(|it| &it.name).collect::<Vec<_>>())
        })
    };
    let delete = |call, name: &str| {
        let name = name.to_owned();
        Row::new(call, DELETE, &DeleteImageRequest { name, sync: false, target: None })
    };
    let long = "v".repeat(4096);
    vec![
        get("image: get without a namespace", "x").of(None),
        get("image: get in namespace a/b", "x").of(Some("a/b")),
        get("image: get what is not there", "none"),
        get("image: get in a namespace that is not there", "none").of(Some("nowhere")),
        create("image: create", image("docker.io/library/a:1", &[("key", "one")])),
        create("image: create again", image("docker.io/library/a:1", &[])),
        create("image: create another", image("b", &[("key", "two"), ("a.b/c", "x")])),
        create("image: create without a name", image("", &[])),
        create("image: create without a digest", with_target(|it| it.digest.clear())),
        create("image: create with no digest", with_target(|it| it.digest = "x".to_owned())),
        create(
            "image: create with a short digest",
            with_target(|it| it.digest = "sha256:00".to_owned()),
        ),
        create(
            "image: create with an unknown digest",
            with_target(|it| it.digest = format!("md5:{}", "0".repeat(32))),
        ),
        create("image: create without a size", with_target(|it| it.size = 0)),
        create("image: create with a negative size", with_target(|it| it.size = -1)),
        create("image: create without a media type", with_target(|it| it.media_type.clear())),
        create("image: create with a long label", image("long", &[("k", &long)])),
        create("image: create with an empty label", image("empty", &[("k", "")])),
        list("image: list", &[]),
        list("image: list by label", &["labels.key==one"]),
        list("image: list by a label with dots", &["labels.\"a.b/c\"==x"]),
        list("image: list by two filters", &["name==b", "labels.key==one"]),
        list("image: list by both", &["name==b,labels.key==one"]),
        list("image: list by expression", &["name~=/library/"]),
        list("image: list by presence", &["labels.key"]),
        list("image: list by inequality", &["labels.key!=one"]),
        list("image: list by target", &["target.mediatype~=index"]),
        list("image: list by what there is not", &["bogus==1"]),
        list("image: list by a broken filter", &["name=="]),
        list("image: list by another broken filter", &["name=b"]),
        list("image: list by a broken expression", &["name~=\"(\""]),
        list("image: list by an open quote", &["name==\"b"]),
        delete("image: delete what is not there", "none"),
        delete("image: delete without a name", ""),
    ]
}

fn image_updates() -> Vec<Row> {
    const UPDATE: &str = "/containerd.services.images.v1.Images/Update";
    let update = |call, image: Image, paths: &[&str]| {
        let update_mask = if paths.is_empty() { None } else { mask(paths) };
        let update =
            UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
        Row::new(call, UPDATE, &update).showing(|bytes| {
            let mut image = UpdateImageResponse::decode(bytes).expect("an image").image;
            if let Some(image) = &mut image {
                (image.created_at, image.updated_at) = (None, None);
            }
            format!("{image:?}")
        })
    };
    vec![
        update("image: update what is not there", image("none", &[]), &[]),
        update("image: update without a name", image("", &[]), &[]),
        update("image: update a label", image("b", &[("key", "new")]), &["labels.key"]),
        update("image: update a label away", image("b", &[]), &["labels.key"]),
        update("image: update labels", image("b", &[("only", "1")]), &["labels"]),
        update("image: update target", with_name("b", |it| it.size = 20), &["target"]),
        update(
            "image: update a target's size",
            with_name("b", |it| it.size = 30),
            &["target.size"],
        ),
        update("image: update annotations", image("b", &[]), &["annotations"]),
        update("image: update an annotation", image("b", &[]), &["annotations.a"]),
        update("image: update its name", image("b", &[]), &["name"]),
        update("image: update its time", image("b", &[]), &["created_at"]),
        update("image: update nothing known", image("b", &[]), &["bogus"]),
        update("image: update all", image("b", &[("all", "1")]), &[]),
        update("image: update to a bad target", with_name("b", |it| it.size = 0), &["target"]),
    ]
}

fn with_name(name: &str, change: impl FnOnce(&mut Descriptor)) -> Image {
    Image { name: name.to_owned(), ..with_target(change) }
}

pub(crate) fn container(id: &str) -> Container {
    Container {
        id: id.to_owned(),
        labels: labels(&[("key", "one")]),
        image: "image".to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        spec: Some(Any { type_url: "spec".to_owned(), value: b"{}".to_vec() }),
        ..Container::default()
    }
}

fn with(id: &str, change: impl FnOnce(&mut Container)) -> Container {
    let mut container = container(id);
    change(&mut container);
    container
}

fn containers() -> Vec<Row> {
    const CREATE: &str = "/containerd.services.containers.v1.Containers/Create";
    const GET: &str = "/containerd.services.containers.v1.Containers/Get";
    const LIST: &str = "/containerd.services.containers.v1.Containers/List";
    const DELETE: &str = "/containerd.services.containers.v1.Containers/Delete";
    let create = |call, container: Container| {
        Row::new(call, CREATE, &CreateContainerRequest { container: Some(container) })
    };
    let get = |call, id: &str| Row::new(call, GET, &GetContainerRequest { id: id.to_owned() });
    let list = |call, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Row::new(call, LIST, &ListContainersRequest { filters }).showing(|bytes| {
            let found = ListContainersResponse::decode(bytes).expect("is a list");
            format!("{:?}", found.containers.iter().map(|it| &it.id).collect::<Vec<_>>())
        })
    };
    let delete =
        |call, id: &str| Row::new(call, DELETE, &DeleteContainerRequest { id: id.to_owned() });
    let long = "v".repeat(4096);
    let large = Any { type_url: "large".to_owned(), value: vec![b'x'; 5 << 20] };
    vec![
        create("container: create", container("c1")),
        create("container: create again", container("c1")),
        create("container: create without an id", container("")),
        create("container: create a/b", container("a/b")),
        create("container: create a..b", container("a..b")),
        create("container: create an id of 77", container(&"c".repeat(77))),
        create("container: create without a runtime", with("c2", |it| it.runtime = None)),
        create(
            "container: create with a nameless runtime",
            with("c2", |it| it.runtime = runtime("")),
        ),
        create(
            "container: create with a key and no snapshotter",
            with("c2", |it| it.snapshot_key = "key".to_owned()),
        ),
        create(
            "container: create with a snapshotter and no key",
            with("c3", |it| it.snapshotter = "overlayfs".to_owned()),
        ),
        create(
            "container: create with a long label",
            with("c2", |it| it.labels = labels(&[("k", &long)])),
        ),
        create(
            "container: create with a nameless extension",
            with("c2", |it| it.extensions = [(String::new(), Any::default())].into()),
        ),
        create(
            "container: create with a large extension",
            with("large", |it| it.extensions = [("large".to_owned(), large)].into()),
        ),
        get("container: get the large one", "large"),
        get("container: get what is not there", "none"),
        get("container: get without an id", ""),
        list("container: list", &[]),
        list("container: list by id", &["id==c1"]),
        list("container: list by runtime", &["runtime.name==io.containerd.runc.v2"]),
        list("container: list by image", &["image==image,labels.key==one"]),
        list("container: list by a broken filter", &["id==c1,"]),
        delete("container: delete", "large"),
        delete("container: delete again", "large"),
        delete("container: delete without an id", ""),
    ]
}

fn update_container(call: &'static str, container: Container, paths: &[&str]) -> Row {
    const UPDATE: &str = "/containerd.services.containers.v1.Containers/Update";
    let update_mask = if paths.is_empty() { None } else { mask(paths) };
    let update = UpdateContainerRequest { container: Some(container), update_mask };
    Row::new(call, UPDATE, &update).showing(|bytes| {
        let it = UpdateContainerResponse::decode(bytes).expect("a container").container;
        let it = it.expect("is there");
        format!(
            "{} {:?} {:?} {:?} {:?} {:?} {:?}",
            it.id, it.labels, it.image, it.runtime, it.snapshotter, it.snapshot_key, it.extensions
        )
    })
}

fn extension() -> BTreeMap<String, Any> {
    [("x.y".to_owned(), Any { type_url: "t".to_owned(), value: vec![1] })].into()
}

fn runtime(name: &str) -> Option<Runtime> {
    Some(Runtime { name: name.to_owned(), options: None })
}

fn container_updates() -> Vec<Row> {
    vec![
        update_container("container: update what is not there", container("none"), &[]),
        update_container("container: update without an id", container(""), &[]),
        update_container(
            "container: update a label",
            with("c1", |it| it.labels = labels(&[("a", "1")])),
            &["labels.a"],
        ),
        update_container(
            "container: update a label away",
            with("c1", |it| it.labels.clear()),
            &["labels.a"],
        ),
        update_container(
            "container: update labels",
            with("c1", |it| it.labels = labels(&[("b", "2")])),
            &["labels"],
        ),
        update_container(
            "container: update image",
            with("c1", |it| it.image = "new".to_owned()),
            &["image"],
        ),
        update_container("container: update spec", container("c1"), &["spec"]),
        update_container(
            "container: update extensions",
            with("c1", |it| it.extensions = extension()),
            &["extensions"],
        ),
    ]
}

fn container_refusals() -> Vec<Row> {
    const DELETE_NAMESPACE: &str = "/containerd.services.namespaces.v1.Namespaces/Delete";
    vec![
        update_container(
            "container: update an extension",
            with("c1", |it| it.extensions = extension()),
            &["extensions.x.y"],
        ),
        update_container(
            "container: update runtime",
            with("c1", |it| it.runtime = runtime("x")),
            &["runtime"],
        ),
        update_container(
            "container: update snapshotter",
            with("c1", |it| it.snapshotter = "x".to_owned()),
            &["snapshotter"],
        ),
        update_container(
            "container: update snapshotkey",
            with("c3", |it| it.snapshot_key = "k".to_owned()),
            &["snapshotkey"],
        ),
        update_container(
            "container: update snapshot_key",
            with("c1", |it| it.snapshot_key = "k".to_owned()),
            &["snapshot_key"],
        ),
        update_container("container: update id", container("c1"), &["id"]),
        update_container("container: update nothing known", container("c1"), &["bogus"]),
        update_container("container: update all", container("c1"), &[]),
        update_container(
            "container: update all, another runtime",
            with("c1", |it| it.runtime = runtime("x")),
            &[],
        ),
        update_container(
            "container: update all, another snapshotter",
            with("c1", |it| it.snapshotter = "x".to_owned()),
            &[],
        ),
        Row::new(
            "namespace: delete one that is not empty",
            DELETE_NAMESPACE,
            &DeleteNamespaceRequest { name: "one".to_owned() },
        ),
    ]
}
