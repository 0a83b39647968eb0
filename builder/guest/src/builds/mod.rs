//! stub
#[derive(Debug, Default)]
pub(crate) struct Builds {}
impl Builds {
    pub(crate) fn forget_old(&self) {}
    pub(crate) fn end_all(&self) {}
}
