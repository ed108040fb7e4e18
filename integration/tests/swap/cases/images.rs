//! Images: import, list, tag, label, export, remove, check, mount.

use std::fs;

use anyhow::Result;
use integration::{
    cell::{Cell, IMAGE},
    image::{self, Flavour, Layer},
};
use serde_json::json;

use super::{Case, has, has_not, needs_transfer, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "images_ls", run: list },
    Case { name: "images_import_oci", run: import_oci },
    Case { name: "images_import_docker", run: import_docker },
    Case { name: "images_import_layers", run: layers },
    Case { name: "images_tag", run: tag },
    Case { name: "images_label", run: label },
    Case { name: "images_export", run: export },
    Case { name: "images_rm", run: remove },
    Case { name: "images_check", run: check },
    Case { name: "images_mount_unmount", run: mount },
];

fn list(cell: &mut Cell) -> Result<()> {
    let top = image::busybox(Flavour::Oci)?.top().clone();
    let table = cell.ok(&["images", "ls"])?;
    let line = row(&table, IMAGE)?;
    for part in [top.media_type, &top.digest, "linux/amd64"] {
        has(line, part)?;
    }
    has(&cell.ok(&["images", "ls", "-q"])?, IMAGE)?;
    has_not(&cell.ok(&["images", "ls", "-q", "name==nothing"])?, IMAGE)?;
    has(&cell.ok(&["images", "ls", "-q", &format!("name=={IMAGE}")])?, IMAGE)
}

fn import_oci(cell: &mut Cell) -> Result<()> {
    for (flavour, name) in
        [(Flavour::Oci, "import.test/oci:1"), (Flavour::Docker, "import.test/docker-types:1")]
    {
        let said = cell.import(&image::multi_platform(flavour)?, name)?;
        has(&said, name)?;
        let id = cell.id();
        let words = ["run", "--rm", name, id.as_str(), "echo", "imported"];
        has(&run(cell, &words)?, "imported")?;
        cell.ok(&["images", "rm", "--sync", name])?;
    }
    Ok(())
}

fn import_docker(cell: &mut Cell) -> Result<()> {
    let layers = [Layer::default().file("hello", 0o644, "hello\n")];
    let image = image::Image::new(Flavour::Docker, "amd64", &layers, &json!({"Cmd": ["/hello"]}));
    let archive = cell.file("docker.tar");
    fs::write(&archive, image::docker_archive(&image, &layers, "import.test/saved:2"))?;
    let said = cell.ok(&["images", "import", &archive.display().to_string()])?;
    has(&said, "import.test/saved:2")?;
    cell.ok(&["images", "rm", "--sync", "import.test/saved:2"]).map(drop)
}

fn layers(cell: &mut Cell) -> Result<()> {
    cell.import(&image::layered(Flavour::Oci, "images-1")?, "import.test/layered:1")?;
    let script = "cat kept changed linked sticky-too; ls -a opaque; \
                  stat -c %a changed sticky tmp; ls removed";
    let id = cell.id();
    let said = cell.ctr(&["run", "--rm", "import.test/layered:1", &id, "sh", "-c", script])?;
    same(said.stdout.as_str(), "lower\nupper\nupper\nmode\n.\n..\nnew\n600\n1755\n1777\n")?;
    same(said.code, 1)?;
    cell.ok(&["images", "rm", "--sync", "import.test/layered:1"]).map(drop)
}

fn tag(cell: &mut Cell) -> Result<()> {
    cell.ok(&["images", "tag", IMAGE, "tag.test/other:2"])?;
    has(&cell.refused(&["images", "tag", IMAGE, "tag.test/other:2"])?, "already exists")?;
    cell.ok(&["images", "tag", "--force", IMAGE, "tag.test/other:2"])?;
    let table = cell.ok(&["images", "ls"])?;
    let digest = |name| Ok::<_, anyhow::Error>(row(&table, name)?.split_whitespace().nth(2));
    same(digest("tag.test/other:2")?, digest(IMAGE)?)?;
    cell.ok(&["images", "rm", "tag.test/other:2"]).map(drop)
}

fn label(cell: &mut Cell) -> Result<()> {
    cell.ok(&["images", "label", IMAGE, "color=blue"])?;
    has(row(&cell.ok(&["images", "ls"])?, IMAGE)?, "color=blue")?;
    cell.ok(&["images", "label", IMAGE, "color="])?;
    has_not(row(&cell.ok(&["images", "ls"])?, IMAGE)?, "color")
}

fn export(cell: &mut Cell) -> Result<()> {
    needs_transfer(cell)?;
    let archive = cell.file("export.tar").display().to_string();
    cell.ok(&["images", "tag", IMAGE, "export.test/it:1"])?;
    cell.ok(&["images", "export", &archive, "export.test/it:1"])?;
    cell.ok(&["images", "rm", "--sync", "export.test/it:1"])?;
    has(&cell.ok(&["images", "import", &archive])?, "export.test/it:1")?;
    let table = cell.ok(&["images", "ls"])?;
    has(row(&table, "export.test/it:1")?, "linux/amd64")?;
    cell.ok(&["images", "rm", "--sync", "export.test/it:1"]).map(drop)
}

fn remove(cell: &mut Cell) -> Result<()> {
    let image = image::layered(Flavour::Docker, "images-2")?;
    cell.import(&image, "rm.test/it:1")?;
    let top = &image.layers().last().expect("it has layers").digest;
    has(&cell.ok(&["content", "ls", "-q"])?, top)?;
    cell.ok(&["images", "rm", "--sync", "rm.test/it:1"])?;
    has_not(&cell.ok(&["images", "ls", "-q"])?, "rm.test")?;
    has_not(&cell.ok(&["content", "ls", "-q"])?, top)
}

fn check(cell: &mut Cell) -> Result<()> {
    let table = cell.ok(&["images", "check"])?;
    let line = row(&table, IMAGE)?;
    has(line, "complete (")?;
    has(line, "true")
}

fn mount(cell: &mut Cell) -> Result<()> {
    let target = cell.file("mounted");
    fs::create_dir_all(&target)?;
    let path = target.display().to_string();
    cell.ok(&["images", "mount", IMAGE, &path])?;
    let seen = fs::read_to_string(target.join("etc/passwd"));
    let unmounted = cell.ok(&["images", "unmount", "--rm", &path]);
    has(&seen?, "user:x:1000")?;
    unmounted?;
    same(fs::read_dir(&target)?.count(), 0)
}

fn run(cell: &Cell, words: &[&str]) -> Result<String> {
    cell.ok(words)
}
