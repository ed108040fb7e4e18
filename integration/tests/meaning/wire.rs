//! Calls by their path, with messages as bytes.

use std::path::Path;

use anyhow::{Context, Result};
use tonic::codegen::tokio_stream;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

/// A connection.
pub(crate) struct Wire(Grpc<Channel>);

impl Wire {
    pub(crate) async fn connect(address: &Path) -> Result<Self> {
        let address = format!("unix://{}", address.display());
        let channel = Endpoint::from_shared(address)?.connect().await.context("connect")?;
        Ok(Self(Grpc::new(channel).max_decoding_message_size(64 << 20)))
    }

    /// What is answered: the answers, and how the call has ended.
    pub(crate) async fn call(
        &mut self,
        namespace: Option<&str>,
        path: &'static str,
        messages: &[Vec<u8>],
        show: fn(&[u8]) -> String,
    ) -> String {
        let mut shown: Vec<String> = Vec::new();
        // containerd sends the last answer of a write once more when the client has hung up.
        let mut take = |answer: &[u8]| {
            let answer = show(answer);
            if shown.last() != Some(&answer) {
                shown.push(answer);
            }
        };
        match self.answers(namespace, path, messages, &mut take).await {
            Ok(()) => format!("ok, {} answers: {}", shown.len(), shown.join(" | ")),
            Err(status) => format!(
                "{:?}, {} answers: {} | {:?}",
                status.code(),
                shown.len(),
                shown.join(" | "),
                status.message()
            ),
        }
    }

    async fn answers(
        &mut self,
        namespace: Option<&str>,
        path: &'static str,
        messages: &[Vec<u8>],
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Status> {
        let mut request = Request::new(tokio_stream::iter(messages.to_vec()));
        if let Some(namespace) = namespace {
            let value = namespace.parse().map_err(|_| Status::internal("no header"))?;
            request.metadata_mut().insert("containerd-namespace", value);
        }
        self.0.ready().await.map_err(|error| Status::internal(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let mut answers = self.0.streaming(request, path, Bytes).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            take(&answer);
        }
        Ok(())
    }
}

/// Messages as they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(to, &item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; prost::bytes::Buf::remaining(from)];
        prost::bytes::Buf::copy_to_slice(from, &mut bytes);
        Ok(Some(bytes))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
