//! Whether a request was made by a page of another site: browsers add credentials they remember to those too.
//!
//! Programs send neither of the two fields that are looked at, and browsers send them with every such request.
//! Must not know: what is asked.

use crate::problem::{Code, Problem};
use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Refuses what a page of another site has a browser send. `public` is the listener's public address, as `host:port`.
///
/// # Errors
/// [`Code::Forbidden`].
pub(crate) fn check_same_site(headers: &HeaderMap, public: Option<&str>) -> Result<(), Problem> {
    let is_own_site = |site: &HeaderValue| site == "same-origin" || site == "none";
    let is_own_origin = |origin: &HeaderValue| {
        let Some(host) = origin
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("https://"))
        else {
            return false;
        };
        let asked = headers.get(HOST).and_then(|host| host.to_str().ok());
        [asked, public]
            .into_iter()
            .flatten()
            .any(|own| own.eq_ignore_ascii_case(host))
    };
    let own = headers.get_all(SEC_FETCH_SITE).iter().all(is_own_site)
        && headers.get_all(ORIGIN).iter().all(is_own_origin);
    if own {
        return Ok(());
    }
    Err(
        Problem::new(Code::Forbidden, "a page of another site made this request")
            .hint("programs send no Origin and no Sec-Fetch-Site"),
    )
}

/// Whether the one content type of a request is `application/json`. That is no type that a page may send to another site unasked; and a
/// text that two readers could take for two types is none at all.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(one), None) = (types.next(), types.next()) else {
        return false;
    };
    let Some(text) = one.to_str().ok().filter(|text| !text.contains(',')) else {
        return false;
    };
    let essence = text.split(';').next().unwrap_or(text);
    essence.trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        map
    }

    #[test]
    fn pages_of_other_sites_are_told_from_programs_and_own_pages() {
        let host = ("host", "farm.example:7443");
        for (good, fields) in [
            (true, vec![]),
            (true, vec![("sec-fetch-site", "none")]),
            (
                true,
                vec![
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://farm.example:7443"),
                ],
            ),
            (true, vec![("origin", "https://public.example:443")]),
            (false, vec![("sec-fetch-site", "cross-site")]),
            (false, vec![("sec-fetch-site", "same-site")]),
            (
                false,
                vec![("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
            ),
            (false, vec![("origin", "null")]),
            (false, vec![("origin", "http://farm.example:7443")]),
            (false, vec![("origin", "https://farm.example")]),
            (false, vec![("origin", "https://evil.example")]),
            (
                false,
                vec![("origin", "https://farm.example:7443.evil.example")],
            ),
        ] {
            let headers = map(&[vec![host], fields.clone()].concat());
            let checked = check_same_site(&headers, Some("public.example:443"));
            assert_eq!(checked.is_ok(), good, "{fields:?}");
        }
    }

    #[test]
    fn json_is_one_type_with_one_reading() {
        let is = |text: &'static str| is_json(&map(&[("content-type", text)]));
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json ;x",
        ] {
            assert!(is(good), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "text/plain;x=,application/json",
            "text/plain;charset=utf-8,application/json",
            "text/plain, application/json",
            "application/json, text/plain",
            "application/json;x=,text/plain",
            "application/x-www-form-urlencoded; a=,application/json",
            "application/jsonp",
        ] {
            assert!(!is(bad), "{bad}");
        }
        let twice = ("content-type", "application/json");
        assert!(!is_json(&map(&[twice, twice])) && !is_json(&map(&[])));
    }
}
