//! The builder asks every few seconds whether the session lives; as long as this answers, it does.

use bollard_buildkit_proto::health as proto;
use proto::health_check_response::ServingStatus;
use tonic::{Request, Response, Status};

/// The service `grpc.health.v1.Health`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Healthy;

fn serving() -> proto::HealthCheckResponse {
    proto::HealthCheckResponse {
        status: ServingStatus::Serving.into(),
    }
}

#[tonic::async_trait]
impl proto::health_server::Health for Healthy {
    async fn check(
        &self,
        _request: Request<proto::HealthCheckRequest>,
    ) -> Result<Response<proto::HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    async fn list(
        &self,
        _request: Request<proto::HealthListRequest>,
    ) -> Result<Response<proto::HealthListResponse>, Status> {
        Err(Status::unimplemented("not served here"))
    }

    type WatchStream = tokio_stream::Empty<Result<proto::HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _request: Request<proto::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not served here"))
    }
}
