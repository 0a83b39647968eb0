use super::*;
use proptest::prelude::*;

fn matches(pattern: &str, path: &str) -> bool {
    Matcher::new(&[pattern]).unwrap().matches(path)
}

#[test]
fn single_patterns_match_as_docker_does() {
    for (pattern, path, expected) in [
        ("**", "file", true),
        ("**", "dir/file", true),
        ("**/", "file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir/dir2/file", true),
        ("dir/**", "dir", false),
        ("dir/**", "dirx/file", false),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/*", "dir/dir2/dir2/file", true),
        ("**/dir2/**", "dir/dir2/dir2/file", true),
        ("**file", "file", true),
        ("**file", "dir/dir.file", true),
        ("**/file", "file", true),
        ("**/file", "dir/file", true),
        ("**/file", "dir/xfile", false),
        ("**/file*txt", "dir/dir/file.txt", true),
        ("**/**/*.txt", "dir/dir/file.txt", true),
        ("**/**/*.txt2", "dir/dir/file.txt", false),
        ("a**/*.txt", "a/dir/file.txt", true),
        ("a/*.txt", "a/dir/file.txt", false),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "ae", false),
        ("a[^b-d]e", "aze", true),
        (".*", ".foo", true),
        (".*", "foo", false),
        ("abc.def", "abcZdef", false),
        ("abc?def", "abcZdef", true),
        ("abc?def", "abc/def", false),
        ("a\\\\", "a\\", true),
        ("**/foo/bar", "foo/bar", true),
        ("**/foo/bar", "dir/dir2/foo/bar", true),
        ("abc/**", "abc/def/ghi", true),
        ("**/.foo", "bar/.foo", true),
        ("**/.foo", ".foo", true),
        ("*c/d", "a/b/vc/d", false),
        ("dir", "dir/deep/er", true),
        ("di?", "dir/file", true),
        ("a(b)c/def", "a(b)c/def", true),
        ("a(b)c/def", "abc/def", false),
        ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
        (
            "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
            "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
            true,
        ),
        ("*.{js,ts}", "a.{js,ts}", true),
        ("*.{js,ts}", "a.js", false),
        ("x*", "x\nfile", true),
        ("**/*.ö", "ü/a.ö", true),
        ("*.txt", "dir/a.txt", false),
        ("/a", "a", false),
        ("[[:alpha:]]x", "bx", true),
        ("[a&&b]x", "&x", true),
        ("\\d*", "5a", true),
        ("\\d*", "٥a", false),
    ] {
        assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
    }
}

#[test]
fn later_patterns_overrule_earlier_ones() {
    for (patterns, path, expected) in [
        (&["docs", "!docs/README.md"][..], "docs/README.md", false),
        (&["docs", "!docs/README.md"], "docs/other", true),
        (&["docs", "!docs/README.md"], "docs", true),
        (&["!docs/README.md", "docs"], "docs/README.md", true),
        (&["*", "!keep"], "keep/inner", false),
        (&["*", "!keep", "keep/not"], "keep/not", true),
        (&["**", "!**/*.go"], "a/b.go", false),
        (&["**", "!util/docker/web"], "util/docker/web/foo", false),
        (
            &["**", "!util/docker/web", "util/docker/web/foo"],
            "util/docker/web/foo",
            true,
        ),
        (&["a/*", "!a/b"], "a/b/c", false),
        (&[" ", "a "], "a", true),
        (&["!x"], "x", false),
    ] {
        assert_eq!(
            Matcher::new(patterns).unwrap().matches(path),
            expected,
            "{patterns:?} {path}"
        );
    }
}

#[test]
fn malformed_patterns_are_named() {
    for bad in ["[", "a[]b]", "!", "[x-]", "a\\", "\\ä*"] {
        assert_eq!(Matcher::new(&[bad]).unwrap_err().pattern, bad);
    }
    let told = matcher(b"ok\n[\n").unwrap_err().to_string();
    assert_eq!(told, "malformed pattern \"[\"");
}

#[test]
fn files_are_read_as_docker_does() {
    let content =
        b"\xef\xbb\xbftest1\n/test2\n/a/file/here\n\nlastfile\n# comment\n ! /inverted/abs/path\n\
        !\n! \n  # indented\nback/../to//it/\r\n!  ./x/\n/\n";
    assert_eq!(
        parse(content).unwrap(),
        [
            "test1",
            "test2",
            "a/file/here",
            "lastfile",
            "!inverted/abs/path",
            "!",
            "!",
            "# indented",
            "to/it",
            "!x",
            "/"
        ]
    );
    assert_eq!(parse(b"").unwrap(), Vec::<String>::new());
    assert_eq!(
        parse(&vec![b'a'; limits::IGNORE_FILE_BYTES_MAX + 1]),
        Err(IgnoreError::TooLarge)
    );
}

/// A tree's paths and its verdicts, found as a walk does: each from its parent's.
fn walked(matcher: &Matcher, path: &str) -> bool {
    let mut parent = ParentMatches::default();
    let ends: Vec<usize> = path
        .match_indices('/')
        .map(|(at, _)| at)
        .chain([path.len()])
        .collect();
    let mut verdict = false;
    for end in ends {
        (verdict, parent) = matcher.matches_within(&path[..end], &parent);
    }
    verdict
}

proptest! {
    #[test]
    fn any_text_is_a_pattern_or_is_refused(pattern in "\\PC{0,12}", path in "[a-c/.]{1,12}") {
        if let Ok(matcher) = Matcher::new(&[pattern]) {
            matcher.matches(&path);
        }
    }

    #[test]
    fn any_bytes_are_an_ignore_file(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        for pattern in parse(&content).unwrap() {
            prop_assert!(!pattern.is_empty() && !pattern.contains('\n'));
        }
    }

    #[test]
    fn a_walk_and_a_single_question_agree_without_negation(
        patterns in proptest::collection::vec("[ab*?/]{1,6}", 1..4), path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let matcher = Matcher::new(&patterns).unwrap();
        prop_assert_eq!(walked(&matcher, &path), matcher.matches(&path));
    }

    #[test]
    fn a_plain_path_matches_itself_and_what_it_holds(path in "[a-z.+() ]{1,5}(/[a-z]{1,3}){0,2}") {
        let cleaned = clean(path.trim());
        prop_assume!(cleaned != "." && !cleaned.starts_with(".."));
        prop_assert!(matches(&cleaned, &cleaned));
        let inner = format!("{cleaned}/inner");
        prop_assert!(matches(&cleaned, &inner));
    }
}
