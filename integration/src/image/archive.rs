//! Images as archives, as `ctr images import` reads them.

use serde_json::json;

use super::{Image, Layer, bytes};

/// Writes `image` as an OCI image layout in an archive, under `name`.
pub fn oci_archive(image: &Image, name: &str) -> Vec<u8> {
    let mut top = image.top().descriptor();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    top["annotations"] = json!({
        "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
    });
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    let index = json!({"schemaVersion": 2, "manifests": [top]});
    let mut archive = Layer::default()
        .file("oci-layout", 0o644, bytes(&layout))
        .directory("blobs", 0o755)
        .directory("blobs/sha256", 0o755);
    for blob in &image.blobs {
        let hex = blob.digest.trim_start_matches("sha256:");
        archive = archive.file(&format!("blobs/sha256/{hex}"), 0o644, blob.bytes.clone());
    }
    archive.file("index.json", 0o644, bytes(&index)).tar()
}

/// Writes `layers` as `docker save` does, under `name`.
pub fn docker_archive(image: &Image, layers: &[Layer], name: &str) -> Vec<u8> {
    let config = image.config();
    let hex = config.digest.trim_start_matches("sha256:");
    let names: Vec<String> = (0..layers.len()).map(|at| format!("layer-{at}/layer.tar")).collect();
    let manifest = json!([{"Config": format!("{hex}.json"), "RepoTags": [name], "Layers": names}]);
    let mut archive = Layer::default().file(&format!("{hex}.json"), 0o644, config.bytes.clone());
    for (name, layer) in names.iter().zip(layers) {
        archive = archive.file(name, 0o644, layer.tar());
    }
    archive.file("manifest.json", 0o644, bytes(&manifest)).tar()
}
