//! Names for images.

use std::time::SystemTime;

use proto::containerd::services::images::v1::{
    self as api, CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest,
    GetImageResponse, ImageCreate, ImageDelete, ImageUpdate, ListImagesRequest, ListImagesResponse,
    UpdateImageRequest, UpdateImageResponse, images_server,
};
use tonic::{Request, Response, Status};

use super::{
    after_removal, blocking, glance, paths, refused, required, scope, status, timestamp,
    wire::{descriptor_from_wire, descriptor_to_wire, parse_digest},
};
use crate::{
    error::Error,
    events::Exchange,
    filter::Filter,
    gc::Scheduler,
    metadata::{DeleteImage, Image, Store, View},
};

/// The service.
#[derive(Clone)]
pub struct Images {
    store: Store,
    events: Exchange,
    gc: Scheduler,
}

impl Images {
    /// Serves the images in `store`.
    pub fn new(store: Store, events: Exchange, gc: Scheduler) -> Self {
        Self { store, events, gc }
    }
}

#[tonic::async_trait]
impl images_server::Images for Images {
    async fn get(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        let scope = scope(&request)?;
        let name = request.into_inner().name;
        let find = move |view: &View| view.image(&scope.namespace, &name);
        let image = glance(&self.store, find).await?;
        Ok(Response::new(GetImageResponse { image: Some(to_wire(image)) }))
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let scope = scope(&request)?;
        let store = self.store.clone();
        let filters = request.into_inner().filters;
        let images =
            blocking(move || store.images(&scope.namespace, &Filter::parse_all(&filters)?));
        let images = images.await?.into_iter().map(to_wire).collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        let scope = scope(&request)?;
        let CreateImageRequest { image, source_date_epoch } = request.into_inner();
        let image = from_wire(required("image", image)?, source_date_epoch)?;
        let (store, namespace) = (self.store.clone(), scope.namespace.clone());
        let image = blocking(move || store.create_image(&scope, image)).await?;
        let event = ImageCreate { name: image.name.clone(), labels: image.labels.clone() };
        self.events.publish(&namespace, "/images/create", proto::any::pack(&event));
        Ok(Response::new(CreateImageResponse { image: Some(to_wire(image)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        let scope = scope(&request)?;
        let UpdateImageRequest { image, update_mask, source_date_epoch } = request.into_inner();
        let (mut image, mask) = (required("image", image)?, paths(update_mask));
        let replaces_target = mask.is_empty() || mask.iter().any(|path| path == "target");
        if !replaces_target {
            // Clients that change a label leave the target out; nothing of it but the annotations
            // is looked at.
            let target = image.target.get_or_insert_default();
            target.digest = crate::digest::Digest::of(b"").to_string();
        }
        let image = from_wire(image, source_date_epoch)?;
        let (store, namespace) = (self.store.clone(), scope.namespace.clone());
        let image = blocking(move || store.update_image(&scope, &image, &mask)).await?;
        let event = ImageUpdate { name: image.name.clone(), labels: image.labels.clone() };
        self.events.publish(&namespace, "/images/update", proto::any::pack(&event));
        Ok(Response::new(UpdateImageResponse { image: Some(to_wire(image)) }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let scope = scope(&request)?;
        let DeleteImageRequest { name, sync, target } = request.into_inner();
        let target = target.map(|target| parse_digest(&target.digest)).transpose()?;
        let (store, namespace) = (self.store.clone(), scope.namespace.clone());
        let delete = DeleteImage { name: name.clone(), target };
        blocking(move || store.delete_image(&scope, &delete)).await?;
        let event = ImageDelete { name };
        self.events.publish(&namespace, "/images/delete", proto::any::pack(&event));
        after_removal(&self.gc, sync).await?;
        Ok(Response::new(()))
    }
}

fn from_wire(image: api::Image, epoch: Option<prost_types::Timestamp>) -> Result<Image, Status> {
    if image.name.is_empty() {
        return Err(refused("Image.Name required"));
    }
    let now = match epoch {
        Some(epoch) => SystemTime::try_from(epoch)
            .map_err(|error| status(Error::InvalidArgument(format!("source date: {error}"))))?,
        None => SystemTime::now(),
    };
    Ok(Image {
        name: image.name,
        labels: image.labels,
        target: descriptor_from_wire(image.target.unwrap_or_default())?,
        created: now,
        updated: now,
    })
}

fn to_wire(image: Image) -> api::Image {
    api::Image {
        name: image.name,
        labels: image.labels,
        target: Some(descriptor_to_wire(image.target)),
        created_at: timestamp(image.created),
        updated_at: timestamp(image.updated),
    }
}
