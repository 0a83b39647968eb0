use super::*;
use crate::limits::HOST_API_PAGE_MAX;

fn range(oldest: u32, newest: u32) -> VersionRange {
    VersionRange { oldest, newest }
}

#[test]
fn neighbours_speak_the_newest_version_of_both_and_others_are_refused_with_both() {
    let ours = range(3, 4);
    for (theirs, common) in [
        (Some(range(2, 3)), Ok(3)),
        (Some(range(3, 4)), Ok(4)),
        (Some(range(4, 5)), Ok(4)),
        (Some(range(1, 2)), Err(range(1, 2))),
        (Some(range(5, 6)), Err(range(5, 6))),
        // One that does not say speaks version 2.
        (None, Err(range(2, 2))),
    ] {
        let expected = common.map_err(|theirs| NoCommonVersion { ours, theirs });
        assert_eq!(ours.common(theirs), expected, "{theirs:?}");
    }
    assert_eq!(range(2, 3).common(None), Ok(2));
    let theirs = range(5, 6);
    let told = NoCommonVersion { ours, theirs }.to_string();
    assert!(told.contains("3 to 4") && told.contains("5 to 6"), "{told}");
    // This release and the one before it.
    assert_eq!(HOST_API_VERSIONS.newest - HOST_API_VERSIONS.oldest, 1);
}

#[test]
fn what_only_a_newer_release_says_is_ignored() {
    let frame = r#"{"version":3,"new":1,"request":{"verb":"ensure_machine","machine":"mch_0000000000000000","generation":1,
        "volume":"vol_0000000000000000","cpu_millis":1,"memory_bytes":1,"pids_max":1,"new":2}}"#;
    let frame: HostRequestFrame = serde_json::from_str(frame).expect("taken");
    assert!(matches!(frame.request, HostRequest::EnsureMachine(_)));
    let error = r#"{"reply":"error","code":"something_new","message":"why","new":true}"#;
    let HostReply::Error(error) = serde_json::from_str(error).expect("taken") else {
        panic!("it is an error");
    };
    assert_eq!(error.code, HostErrorCode::Failed);
    for code in [HostErrorCode::StaleFence, HostErrorCode::Failed] {
        let text = serde_json::to_string(&code).expect("json");
        assert_eq!(
            serde_json::from_str::<HostErrorCode>(&text).ok(),
            Some(code)
        );
    }
}

#[test]
fn what_version_2_says_is_taken() {
    let list: HostRequestFrame =
        serde_json::from_str(r#"{"version":2,"request":{"verb":"list_volumes"}}"#).expect("taken");
    assert_eq!((list.fence, list.page), (None, None));
    let watch = r#"{"version":2,"request":{"verb":"watch_machines","after":7,"wait_ms":1}}"#;
    let watch: HostRequestFrame = serde_json::from_str(watch).expect("taken");
    assert!(matches!(
        watch.request,
        HostRequest::WatchMachines {
            epoch: None,
            after: 7,
            ..
        }
    ));
    let machines = r#"{"reply":"machines","revision":3,"machines":[]}"#;
    let machines: HostReply = serde_json::from_str(machines).expect("taken");
    let expected = HostReply::Machines {
        epoch: None,
        revision: 3,
        machines: vec![],
        more: false,
    };
    assert_eq!(machines, expected);
    // And what goes to it has nothing that it does not know.
    let frame = HostRequestFrame {
        version: 2,
        ..HostRequest::ListVolumes.into()
    };
    let text = serde_json::to_string(&frame).expect("json");
    assert_eq!(text, r#"{"version":2,"request":{"verb":"list_volumes"}}"#);
}

#[test]
fn pages_have_each_item_once_whatever_comes_and_goes_between_them() {
    let list: Vec<String> = (0..2500).map(|n| format!("{n:04}")).collect();
    let mut seen: Vec<String> = Vec::new();
    let mut now = list.clone();
    let mut pages = 0;
    loop {
        let page = Page {
            after: seen.last().cloned(),
            max: u32::MAX,
        };
        let (items, more) = page.cut(now.clone(), String::as_str);
        assert!(items.len() <= HOST_API_PAGE_MAX as usize);
        seen.extend(items);
        pages += 1;
        // The last one that was seen goes, and one comes before it.
        now.retain(|item| Some(item) != seen.last());
        now.insert(0, String::from("-"));
        if !more {
            break;
        }
    }
    assert_eq!(seen, list);
    assert_eq!(pages, 2500_usize.div_ceil(HOST_API_PAGE_MAX as usize));
    let empty = Page {
        after: None,
        max: 0,
    };
    assert_eq!(
        empty.cut(Vec::<String>::new(), String::as_str),
        (vec![], false)
    );
    assert_eq!(
        empty.cut(list, String::as_str).0.len(),
        1,
        "a page has something"
    );
}
