//! The client that the commands use.

use std::{sync::Arc, time::Duration};

use estoppel_model::{IncidentId, OrderId, RunId, Secret};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use crate::{
    Allowlist, AllowlistSuggestion, ApproveReleaseRequest, ApproveRequest, AssignRequest,
    BlockRequest, BreakGlassMade, BreakGlassRequest, BreakGlassSummary, CaptureSummary,
    CaptureVerified, CloseRequest, CredentialMinted, CredentialRequest, CustodyLine,
    DisposeRequest, Disposed, DrillSummary, EvidenceAccepted, ExportRequest, GatewayPolicy,
    HaltAccepted, HaltPlan, HaltRequest, HaltStatus, HoldRequest, HoldSummary, IncidentOpened,
    IncidentSummary, IngestReport, KillSwitchState, LimitAccepted, LimitRequest, LimitSummary,
    NoteRequest, OpenIncidentRequest, PlanRequest, Problem, ReleaseAccepted, ReleaseHoldRequest,
    ReleasePending, ReleaseRequest, RunSummary, SqlRequest, SqlTable, Status, TokenMinted,
    TokenRequest, TokenSummary, Trust, VerifyCaptureRequest,
};

/// How long a request may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long an answer that is a file may take in all.
const FILE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// How long its next piece may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Speaks to one server. Cloning shares the connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Arc<Secret<String>>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address cannot be used.
    #[error("`{url}` is not a server's address: expected http://HOST:PORT or https://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
    },
    /// No answer came.
    #[error("no answer from {url}")]
    Unreachable {
        /// The server's address.
        url: Url,
        /// Why.
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer is not what this version of the client understands.
    #[error("{url} gave an answer that this version does not understand (status {status})")]
    Answer {
        /// The address that was asked.
        url: Url,
        /// The answer's status.
        status: u16,
    },
}

impl Client {
    /// A client of the server at `url`, for whom the system's authorities vouch.
    ///
    /// # Errors
    /// When `url` is no HTTP address.
    pub fn new(url: &str, token: Secret<String>) -> Result<Self, ClientError> {
        Self::trusting(url, token, &Trust::system())
    }

    /// A client of the server at `url`, for whom these authorities vouch.
    ///
    /// # Errors
    /// When `url` is no HTTP address.
    pub fn trusting(url: &str, token: Secret<String>, trust: &Trust) -> Result<Self, ClientError> {
        // Already set is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let error = || ClientError::Url { url: url.to_owned() };
        let base: Url = url.parse().map_err(|_| error())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(error());
        }
        let mut builder = reqwest::Client::builder();
        if let Some(tls) = trust.rustls() {
            builder = builder.tls_backend_preconfigured(Arc::unwrap_or_clone(tls));
        }
        let http = builder
            .timeout(TIMEOUT)
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            // A proxy for agents must not stand between an operator and the kill switch.
            .no_proxy()
            .build()
            .map_err(|_| error())?;
        Ok(Self { http, base, token: Arc::new(token) })
    }

    /// The server's address.
    pub fn url(&self) -> &Url {
        &self.base
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.base.clone(), source };
        let response =
            request.bearer_auth(self.token.expose()).send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().clone();
        match response.json::<Problem>().await {
            Ok(problem) => Err(ClientError::Refused(Box::new(problem))),
            Err(_) => Err(ClientError::Answer { url, status: status.as_u16() }),
        }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) =
            path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        self.http.request(method, url)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let (url, status) = (response.url().clone(), response.status().as_u16());
        response.json().await.map_err(|_| ClientError::Answer { url, status })
    }

    /// Asks for JSON at `path`.
    ///
    /// # Errors
    /// When no answer comes, the server refuses, or the answer is not a `T`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(reqwest::Method::GET, path)).await
    }

    /// Posts JSON to `path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(self.request(reqwest::Method::POST, path).json(body)).await
    }

    /// Asks for text at `path`, such as a report.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(self.request(reqwest::Method::GET, path)).await?;
        let (url, status) = (response.url().clone(), response.status().as_u16());
        response.text().await.map_err(|_| ClientError::Answer { url, status })
    }

    /// `POST /v1/events` with a body of JSON lines or an array, as it stands.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, body: Vec<u8>) -> Result<IngestReport, ClientError> {
        self.json(self.request(reqwest::Method::POST, "/v1/events").body(body)).await
    }

    /// A capture's manifest, byte for byte; the look is recorded with its purpose.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn manifest(
        &self,
        capture: uuid::Uuid,
        purpose: &str,
    ) -> Result<String, ClientError> {
        self.text(&format!("/v1/evidence/captures/{capture}?{}", purpose_query(purpose))).await
    }

    /// Gives the content of a capture's item to `take`, piece by piece; the look is recorded.
    ///
    /// # Errors
    /// As [`Client::get`], and those of `take`; what was taken by then is not whole.
    pub async fn item(
        &self,
        capture: uuid::Uuid,
        sha256: &str,
        purpose: &str,
        take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<u64, FileError> {
        let query = purpose_query(purpose);
        let path = format!("/v1/evidence/captures/{capture}/items/{sha256}?{query}");
        self.file(self.request(reqwest::Method::GET, &path), take).await
    }

    /// Gives a bundle to `take`, piece by piece; the export is recorded with its purpose.
    ///
    /// # Errors
    /// As [`Client::item`].
    pub async fn export_evidence(
        &self,
        request: &ExportRequest,
        take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<u64, FileError> {
        let post = self.request(reqwest::Method::POST, "/v1/evidence/export").json(request);
        self.file(post, take).await
    }

    /// Takes an answer that is a file; how many bytes it had. One that breaks off is an error: its
    /// length comes first.
    async fn file(
        &self,
        request: reqwest::RequestBuilder,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<u64, FileError> {
        let mut response = self.send(request.timeout(FILE_TIMEOUT)).await?;
        let mut bytes = 0;
        loop {
            let piece = tokio::time::timeout(PIECE_TIMEOUT, response.chunk());
            let piece = piece.await.map_err(|_| FileError::Stalled { bytes })?;
            let piece = piece.map_err(|source| FileError::BrokenOff { bytes, source })?;
            let Some(piece) = piece else { return Ok(bytes) };
            take(&piece).map_err(FileError::Take)?;
            bytes += piece.len() as u64;
        }
    }

    /// Keeps the content of an evidence item.
    ///
    /// # Errors
    /// As [`Client::get`]; also when the content's hash is not `sha256`.
    pub async fn put_evidence(&self, sha256: &str, content: Vec<u8>) -> Result<(), ClientError> {
        let request = self.request(reqwest::Method::PUT, &format!("/v1/evidence/{sha256}"));
        self.send(request.body(content)).await.map(drop)
    }

    /// Adds a manifest of evidence to an incident, byte for byte as it was sealed.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn add_evidence(
        &self,
        id: IncidentId,
        manifest: String,
    ) -> Result<EvidenceAccepted, ClientError> {
        let path = format!("/v1/incidents/{id}/evidence");
        self.json(self.request(reqwest::Method::POST, &path).body(manifest)).await
    }

    /// As [`Client::add_evidence`], to the incident of a halt.
    ///
    /// # Errors
    /// As of [`Client::halt`]; also while the server does not know the halt yet.
    pub async fn add_evidence_to_halt(
        &self,
        halt: OrderId,
        manifest: String,
    ) -> Result<EvidenceAccepted, ClientError> {
        let path = format!("/v1/halts/{halt}/evidence");
        self.json(self.request(reqwest::Method::POST, &path).body(manifest)).await
    }

    /// Sets the allowlist.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn set_allowlist(&self, allowlist: &Allowlist) -> Result<Allowlist, ClientError> {
        self.json(self.request(reqwest::Method::PUT, "/v1/allowlist").json(allowlist)).await
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn revoke_token(&self, id: uuid::Uuid) -> Result<(), ClientError> {
        self.send(self.request(reqwest::Method::DELETE, &format!("/v1/tokens/{id}")))
            .await
            .map(drop)
    }
}

/// Why a file did not come whole.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It did not begin.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It broke off.
    #[error("the file broke off after {bytes} bytes")]
    BrokenOff {
        /// How many had come.
        bytes: u64,
        /// Why.
        source: reqwest::Error,
    },
    /// Nothing more came.
    #[error("nothing more came after {bytes} bytes")]
    Stalled {
        /// How many had come.
        bytes: u64,
    },
    /// Whoever took it did not take more.
    #[error("it cannot be written")]
    Take(#[source] std::io::Error),
}

fn purpose_query(purpose: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair("purpose", purpose).finish()
}

/// Methods that are one request each.
macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $(body $body:ident: $body_type:ty)? => $answer:ty, $verb:ident $path:literal;)*) => {
        /// The endpoints that are one request with one answer.
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// As [`Client::get`].
                pub async fn $name(&self, $($arg: $type,)* $($body: &$body_type)?) -> Result<$answer, ClientError> {
                    self.$verb(&format!($path) $(, $body)?).await
                }
            )*
        }
    };
}

endpoints! {
    /// Halts a scope.
    halt() body request: HaltRequest => HaltAccepted, post "/kill-switch";
    /// Asks what a halt would hit.
    plan_halt() body request: PlanRequest => HaltPlan, post "/v1/halts/plan";
    /// Releases halts.
    release() body request: ReleaseRequest => ReleaseAccepted, post "/kill-switch/release";
    /// Approves a release that another person asked for.
    approve_release(id: uuid::Uuid) body request: ApproveReleaseRequest => ReleaseAccepted, post "/v1/releases/{id}/approve";
    /// Lists the releases that wait for a second person.
    releases_pending() => Vec<ReleasePending>, get "/v1/releases";
    /// Sends a canary through every connected enforcer, and waits for what it came to.
    drill_kill_switch() body request: serde_json::Value => DrillSummary, post "/v1/drills/kill-switch";
    /// Makes a break-glass file.
    make_break_glass() body request: BreakGlassRequest => BreakGlassMade, post "/v1/break-glass";
    /// Lists the break-glass files that were made or used, the latest first.
    break_glasses() => Vec<BreakGlassSummary>, get "/v1/break-glass";
    /// Lists the last drills, the latest first.
    drills() => Vec<DrillSummary>, get "/v1/drills";
    /// Asks whether a scope (percent-encoded) is halted.
    kill_switch(scope: &str) => KillSwitchState, get "/kill-switch?scope={scope}";
    /// Asks how far a halt has been carried out.
    halt_status(id: OrderId) => HaltStatus, get "/v1/halts/{id}";
    /// Blocks a destination.
    block() body request: BlockRequest => HaltAccepted, post "/v1/blocks";
    /// Bounds what a scope's tasks may do.
    limit() body request: LimitRequest => LimitAccepted, post "/v1/limits";
    /// Lists the limits in force.
    limits() => Vec<LimitSummary>, get "/v1/limits";
    /// Runs a query.
    sql() body request: SqlRequest => SqlTable, post "/v1/sql";
    /// Asks for the allowlist.
    allowlist() => Allowlist, get "/v1/allowlist";
    /// Asks what gateways enforce beside orders.
    gateway_policy() => GatewayPolicy, get "/v1/gateway/policy";
    /// Asks where agents went while egress was learned.
    allowlist_suggestions() => Vec<AllowlistSuggestion>, get "/v1/allowlist/suggest";
    /// Opens an incident.
    open_incident() body request: OpenIncidentRequest => IncidentOpened, post "/v1/incidents";
    /// Lists the incidents.
    incidents() => Vec<IncidentSummary>, get "/v1/incidents";
    /// Asks for all that is known of an incident, by its number or id.
    incident(id: &str) => serde_json::Value, get "/v1/incidents/{id}";
    /// Writes a note into an incident.
    note(id: &str) body request: NoteRequest => serde_json::Value, post "/v1/incidents/{id}/notes";
    /// Assigns an incident.
    assign(id: &str) body request: AssignRequest => serde_json::Value, post "/v1/incidents/{id}/assign";
    /// Closes an incident.
    close(id: &str) body request: CloseRequest => serde_json::Value, post "/v1/incidents/{id}/close";
    /// Lists the captures that the vault has, or had.
    captures() => Vec<CaptureSummary>, get "/v1/evidence";
    /// Asks for a capture's custody chain.
    custody(capture: uuid::Uuid) => Vec<CustodyLine>, get "/v1/evidence/captures/{capture}/log";
    /// Compares what is stored of a capture with its manifest.
    verify_capture(capture: uuid::Uuid) body request: VerifyCaptureRequest => CaptureVerified, post "/v1/evidence/captures/{capture}/verify";
    /// Disposes of a capture's contents.
    dispose(capture: uuid::Uuid) body request: DisposeRequest => Disposed, post "/v1/evidence/captures/{capture}/dispose";
    /// Lists the holds.
    holds() => Vec<HoldSummary>, get "/v1/evidence/holds";
    /// Places a hold.
    hold() body request: HoldRequest => HoldSummary, post "/v1/evidence/holds";
    /// Releases a hold.
    release_hold(hold: uuid::Uuid) body request: ReleaseHoldRequest => HoldSummary, post "/v1/evidence/holds/{hold}/release";
    /// Lists the runs of playbooks.
    runs() => Vec<RunSummary>, get "/v1/runs";
    /// Lets a run begin, or declines it.
    approve(id: RunId) body request: ApproveRequest => RunSummary, post "/v1/runs/{id}/approve";
    /// Approves or declines one step (by its id) of a run.
    approve_step(run: RunId, step: &str) body request: ApproveRequest => RunSummary, post "/v1/runs/{run}/steps/{step}/approve";
    /// Asks how the server and its enforcers are.
    status() => Status, get "/v1/status";
    /// Mints a token.
    mint_token() body request: TokenRequest => TokenMinted, post "/v1/tokens";
    /// Lists the tokens.
    tokens() => Vec<TokenSummary>, get "/v1/tokens";
    /// Mints a credential for a gateway.
    mint_credential() body request: CredentialRequest => CredentialMinted, post "/v1/gateway/credentials";
}
