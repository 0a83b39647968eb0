//! What a document may cost, found in time linear in its length, before anything of async-graphql's walks it.
//!
//! async-graphql's own checks walk every path of a document, and a fragment that is spread twice doubles the paths. Here each
//! fragment is measured once. First the text ([`check_text`]), so that the parser meets nothing long or deep; then what
//! the parser made of it ([`shape`]).
//!
//! Must not know: the schema, what a field does.

use super::limits::{
    GRAPHQL_DEPTH_MAX, GRAPHQL_DOCUMENT_BYTES_MAX, GRAPHQL_FRAGMENTS_MAX, GRAPHQL_MUTATIONS_MAX,
    GRAPHQL_NAME_BYTES_MAX, GRAPHQL_NESTING_MAX, GRAPHQL_NODES_MAX, GRAPHQL_OPERATIONS_MAX,
    GRAPHQL_ROOTS_MAX, GRAPHQL_TOKENS_MAX, GRAPHQL_VALUES_MAX,
};
use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, OperationDefinition, OperationType,
    Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, Value, Variables};
use std::collections::HashMap;
use std::convert::Infallible;

/// Why a document is not looked at any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DocumentError {
    #[error("the query has more than {GRAPHQL_DOCUMENT_BYTES_MAX} bytes")]
    Long,
    #[error("the query has more than {GRAPHQL_TOKENS_MAX} names and marks")]
    Tokens,
    #[error("the query has a name of more than {GRAPHQL_NAME_BYTES_MAX} bytes")]
    Name,
    #[error("the query is nested too deep")]
    Deep,
    #[error("the query has a string without an end")]
    OpenString,
    #[error("the query has more than {GRAPHQL_OPERATIONS_MAX} operations")]
    Operations,
    #[error("the query has more than {GRAPHQL_FRAGMENTS_MAX} fragments")]
    Fragments,
    #[error("the fragment '{0}' contains itself")]
    Cycle(Name),
    #[error("there is no fragment '{0}'")]
    NoFragment(Name),
    #[error(
        "the query has more than {GRAPHQL_NODES_MAX} fields and arguments, with its fragments expanded"
    )]
    Nodes,
    #[error("a query has at most {GRAPHQL_ROOTS_MAX} fields at its top")]
    Roots,
    #[error("a mutation has at most {GRAPHQL_MUTATIONS_MAX} fields at its top")]
    Mutations,
    #[error("a subscription has one field at its top")]
    Subscriptions,
    #[error("there is no operation of that name")]
    NoOperation,
    #[error("the query has several operations, and the request names none")]
    WhichOperation,
    #[error("the variables have more than {GRAPHQL_VALUES_MAX} values")]
    Values,
}

type Result<T> = std::result::Result<T, DocumentError>;

/// Looks at the text of a document: length, number and length of its tokens, nesting of its brackets.
///
/// # Errors
/// [`DocumentError`].
pub(super) fn check_text(text: &str) -> Result<()> {
    if text.len() > GRAPHQL_DOCUMENT_BYTES_MAX {
        return Err(DocumentError::Long);
    }
    let mut rest = text.as_bytes();
    let (mut tokens, mut nesting) = (0_usize, 0_usize);
    while let Some(&byte) = rest.first() {
        let length = match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b',' => {
                rest = &rest[1..];
                continue;
            }
            b'#' => {
                let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                rest = &rest[end.unwrap_or(rest.len())..];
                continue;
            }
            b'"' => string_length(rest)?,
            _ if is_name(byte) => {
                let end = rest.iter().position(|byte| !is_name(*byte));
                let length = end.unwrap_or(rest.len());
                if length > GRAPHQL_NAME_BYTES_MAX {
                    return Err(DocumentError::Name);
                }
                length
            }
            b'{' | b'[' | b'(' => {
                nesting += 1;
                if nesting > GRAPHQL_NESTING_MAX {
                    return Err(DocumentError::Deep);
                }
                1
            }
            b'}' | b']' | b')' => {
                nesting = nesting.saturating_sub(1);
                1
            }
            _ => 1,
        };
        rest = &rest[length..];
        tokens += 1;
        if tokens > GRAPHQL_TOKENS_MAX {
            return Err(DocumentError::Tokens);
        }
    }
    Ok(())
}

fn is_name(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

/// Bytes of the string that `rest` begins with, its quotes included.
fn string_length(rest: &[u8]) -> Result<usize> {
    const BLOCK: &[u8] = b"\"\"\"";
    let block = rest.starts_with(BLOCK);
    let mut at = if block { BLOCK.len() } else { 1 };
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' if block && rest[at + 1..].starts_with(BLOCK) => at += 1 + BLOCK.len(),
            b'"' if block && rest[at..].starts_with(BLOCK) => return Ok(at + BLOCK.len()),
            b'\\' if !block => at += 2,
            b'"' if !block => return Ok(at + 1),
            b'\n' | b'\r' if !block => return Err(DocumentError::OpenString),
            _ => at += 1,
        }
    }
    Err(DocumentError::OpenString)
}

/// What a request will do, chosen by `operation` where a document has several.
///
/// # Errors
/// [`DocumentError`].
pub(super) fn shape(
    document: &ExecutableDocument,
    operation: Option<&str>,
) -> Result<OperationType> {
    if document.operations.iter().len() > GRAPHQL_OPERATIONS_MAX {
        return Err(DocumentError::Operations);
    }
    if document.fragments.len() > GRAPHQL_FRAGMENTS_MAX {
        return Err(DocumentError::Fragments);
    }
    let mut measure = Measure {
        document,
        known: HashMap::new(),
    };
    let mut nodes = 0_usize;
    for (_, operation) in document.operations.iter() {
        let cost = measure.operation(&operation.node)?;
        nodes = nodes.saturating_add(cost.nodes);
        check_roots(operation.node.ty, cost.roots)?;
    }
    // Fragments that nothing spreads are looked at too: they are validated.
    for name in document.fragments.keys() {
        nodes = nodes.saturating_add(measure.fragment(name, 0)?.nodes);
    }
    if nodes > GRAPHQL_NODES_MAX {
        return Err(DocumentError::Nodes);
    }
    chosen(&document.operations, operation).map(|operation| operation.ty)
}

fn chosen<'a>(
    operations: &'a DocumentOperations,
    name: Option<&str>,
) -> Result<&'a OperationDefinition> {
    match (operations, name) {
        (DocumentOperations::Single(only), None) => Ok(&only.node),
        (DocumentOperations::Single(_), Some(_)) => Err(DocumentError::NoOperation),
        (DocumentOperations::Multiple(several), Some(name)) => several
            .get(name)
            .map(|operation| &operation.node)
            .ok_or(DocumentError::NoOperation),
        (DocumentOperations::Multiple(several), None) => {
            let mut all = several.values();
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(&only.node),
                (None | Some(_), _) => Err(DocumentError::WhichOperation),
            }
        }
    }
}

fn check_roots(ty: OperationType, roots: usize) -> Result<()> {
    match ty {
        OperationType::Query if roots > GRAPHQL_ROOTS_MAX => Err(DocumentError::Roots),
        OperationType::Mutation if roots > GRAPHQL_MUTATIONS_MAX => Err(DocumentError::Mutations),
        OperationType::Subscription if roots > 1 => Err(DocumentError::Subscriptions),
        OperationType::Query | OperationType::Mutation | OperationType::Subscription => Ok(()),
    }
}

/// Of a selection set, with its fragments expanded.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    /// Fields of the set itself, not of theirs.
    roots: usize,
    /// Fields within fields.
    depth: usize,
}

impl Cost {
    /// Beside what was counted.
    fn add(&mut self, other: Self) -> Result<()> {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.roots = self.roots.saturating_add(other.roots);
        self.depth = self.depth.max(other.depth);
        if self.nodes > GRAPHQL_NODES_MAX {
            return Err(DocumentError::Nodes);
        }
        if self.depth > GRAPHQL_DEPTH_MAX {
            return Err(DocumentError::Deep);
        }
        Ok(())
    }
}

struct Measure<'a> {
    document: &'a ExecutableDocument,
    /// `None`: it is being measured, so whoever meets it again is inside of it.
    known: HashMap<&'a Name, Option<Cost>>,
}

impl<'a> Measure<'a> {
    fn operation(&mut self, operation: &'a OperationDefinition) -> Result<Cost> {
        let mut cost = self.set(&operation.selection_set.node, 0)?;
        cost.nodes = cost.nodes.saturating_add(directives(&operation.directives));
        for variable in &operation.variable_definitions {
            cost.nodes = cost
                .nodes
                .saturating_add(1 + directives(&variable.node.directives));
        }
        Ok(cost)
    }

    /// `nesting` keeps the recursion shallow.
    fn set(&mut self, set: &'a SelectionSet, nesting: usize) -> Result<Cost> {
        if nesting > GRAPHQL_NESTING_MAX {
            return Err(DocumentError::Deep);
        }
        let mut sum = Cost::default();
        for selection in &set.items {
            let mut cost = match &selection.node {
                Selection::Field(field) => {
                    let inner = self.set(&field.node.selection_set.node, nesting + 1)?;
                    let arguments = field.node.arguments.iter();
                    let arguments: usize = arguments
                        .map(|(_, value)| {
                            argument(|| value.node.clone().into_const_with(|_| Ok(Value::Null)))
                        })
                        .sum();
                    Cost {
                        nodes: inner.nodes.saturating_add(arguments),
                        roots: 1,
                        depth: inner.depth + 1,
                    }
                }
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node, nesting + 1)?
                }
                Selection::InlineFragment(inline) => {
                    self.set(&inline.node.selection_set.node, nesting + 1)?
                }
            };
            let own = 1 + directives(selection.node.directives());
            cost.nodes = cost.nodes.saturating_add(own);
            sum.add(cost)?;
        }
        Ok(sum)
    }

    fn fragment(&mut self, name: &'a Name, nesting: usize) -> Result<Cost> {
        match self.known.get(name) {
            Some(Some(cost)) => return Ok(*cost),
            Some(None) => return Err(DocumentError::Cycle(name.clone())),
            None => {}
        }
        let Some(fragment) = self.document.fragments.get(name) else {
            return Err(DocumentError::NoFragment(name.clone()));
        };
        self.known.insert(name, None);
        let mut cost = self.set(&fragment.node.selection_set.node, nesting)?;
        let own = directives(&fragment.node.directives);
        cost.nodes = cost.nodes.saturating_add(own);
        self.known.insert(name, Some(cost));
        Ok(cost)
    }
}

fn directives(all: &[Positioned<Directive>]) -> usize {
    let arguments = all.iter().flat_map(|one| &one.node.arguments);
    let arguments: usize = arguments
        .map(|(_, value)| argument(|| value.node.clone().into_const_with(|_| Ok(Value::Null))))
        .sum();
    all.len() + arguments
}

/// An argument and the values in it.
fn argument(value: impl FnOnce() -> std::result::Result<Value, Infallible>) -> usize {
    match value() {
        Ok(value) => count([&value], usize::MAX).unwrap_or(usize::MAX),
        Err(never) => match never {},
    }
}

/// Values and those in them; `None` if there are more than `max`.
fn count<'a>(values: impl IntoIterator<Item = &'a Value>, max: usize) -> Option<usize> {
    let mut waiting: Vec<&Value> = values.into_iter().collect();
    let mut counted = 0_usize;
    while let Some(value) = waiting.pop() {
        counted += 1;
        match value {
            Value::List(list) => waiting.extend(list),
            Value::Object(object) => waiting.extend(object.values()),
            Value::Null
            | Value::Number(_)
            | Value::String(_)
            | Value::Boolean(_)
            | Value::Binary(_)
            | Value::Enum(_) => {}
        }
        if counted + waiting.len() > max {
            return None;
        }
    }
    Some(counted)
}

/// Counts the values of the variables.
///
/// # Errors
/// [`DocumentError::Values`].
pub(super) fn check_variables(variables: &Variables) -> Result<()> {
    match count(variables.values(), GRAPHQL_VALUES_MAX) {
        Some(_) => Ok(()),
        None => Err(DocumentError::Values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;
    use std::fmt::Write;

    /// As the executor does it.
    fn look(text: &str) -> Result<OperationType> {
        check_text(text)?;
        let document = parse_query(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        shape(&document, None)
    }

    /// Each of `levels` fragments spreads the next one `width` times.
    fn doubling(levels: usize, width: usize, leaf: &str) -> String {
        let mut text = "query{...F0} ".to_owned();
        for level in 0..levels {
            let spread = format!("...F{} ", level + 1).repeat(width);
            write!(text, "fragment F{level} on Query{{{spread}}} ").unwrap();
        }
        write!(text, "fragment F{levels} on Query{{{leaf}}}").unwrap();
        text
    }

    #[test]
    fn fragments_that_double_each_other_are_measured_without_walking_them() {
        for leaf in ["__typename", "orgs{id}"] {
            for (levels, width) in [(30, 2), (20, 10), (8, 100)] {
                let text = doubling(levels, width, leaf);
                let found = look(&text);
                assert!(
                    matches!(found, Err(DocumentError::Nodes | DocumentError::Deep)),
                    "{levels} levels of {width}: {found:?}"
                );
            }
        }
        assert_eq!(
            look(&doubling(6, 2, "__typename")),
            Ok(OperationType::Query)
        );
    }

    #[test]
    fn what_nothing_spreads_counts_as_well() {
        let text = doubling(30, 2, "__typename").replacen("...F0", "__typename", 1);
        assert!(look(&text).is_err());
    }

    #[test]
    fn fragments_that_contain_themselves_or_are_not_there_are_found() {
        let cycle = look("{...A} fragment A on Query{...B} fragment B on Query{...A}");
        assert!(matches!(cycle, Err(DocumentError::Cycle(_))), "{cycle:?}");
        let own = look("{...A} fragment A on Query{orgs{...A}}");
        assert!(matches!(own, Err(DocumentError::Cycle(_))), "{own:?}");
        let absent = look("{...A}");
        assert!(
            matches!(absent, Err(DocumentError::NoFragment(_))),
            "{absent:?}"
        );
    }

    #[test]
    fn texts_are_bounded_before_they_are_parsed() {
        let repeated = |text: &str, times: usize| text.repeat(times);
        for (what, text, expected) in [
            (
                "long",
                format!("{{a}}#{}", repeated("x", 70_000)),
                DocumentError::Long,
            ),
            (
                "wide",
                format!("{{{}}}", repeated("a ", 9000)),
                DocumentError::Tokens,
            ),
            (
                "name",
                format!("{{{}}}", repeated("a", 200)),
                DocumentError::Name,
            ),
            ("sets", repeated("{a", 40), DocumentError::Deep),
            (
                "lists",
                format!("{{a(b:{}", repeated("[", 20_000)),
                DocumentError::Deep,
            ),
            ("string", "{a(b:\"x)}".to_owned(), DocumentError::OpenString),
            (
                "lines",
                "{a(b:\"x\n\")}".to_owned(),
                DocumentError::OpenString,
            ),
            (
                "block",
                "{a(b:\"\"\"x\"\")}".to_owned(),
                DocumentError::OpenString,
            ),
        ] {
            assert_eq!(check_text(&text), Err(expected), "{what}");
        }
        for text in [
            "{a(b:\"{{{{ \\\" [[[\")} # {{{{{",
            "{a(b:\"\"\"{{{ \" \\\"\"\" [[[\"\"\")}",
            "{a(b:\"\")}",
        ] {
            assert_eq!(check_text(text), Ok(()), "{text}");
            assert!(parse_query(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn each_kind_of_operation_has_a_bound_at_its_top() {
        let fields = |kind: &str, many: usize| {
            let fields: String = (0..many).map(|n| format!("a{n}:x ")).collect();
            format!("{kind}{{{fields}}}")
        };
        for (kind, most, error) in [
            ("query", GRAPHQL_ROOTS_MAX, DocumentError::Roots),
            ("mutation", GRAPHQL_MUTATIONS_MAX, DocumentError::Mutations),
            ("subscription", 1, DocumentError::Subscriptions),
        ] {
            assert!(look(&fields(kind, most)).is_ok(), "{kind}");
            assert_eq!(look(&fields(kind, most + 1)), Err(error.clone()), "{kind}");
            // By a fragment too.
            let spread = format!("{kind}{{...F}} {}", fields("fragment F on X", most + 1));
            assert_eq!(look(&spread), Err(error), "{kind}");
        }
    }

    #[test]
    fn depth_is_that_of_fields_wherever_they_stand() {
        let nested = |levels: usize| format!("{}{}", "{a".repeat(levels), "}".repeat(levels));
        assert!(look(&nested(GRAPHQL_DEPTH_MAX)).is_ok());
        assert_eq!(
            look(&nested(GRAPHQL_DEPTH_MAX + 1)),
            Err(DocumentError::Deep)
        );
        let by_fragments = format!("{{a{{...A}}}} fragment A on X{}", nested(GRAPHQL_DEPTH_MAX));
        assert_eq!(look(&by_fragments), Err(DocumentError::Deep));
    }

    #[test]
    fn the_operation_of_a_request_is_the_one_it_names() {
        let both = parse_query("query a{x} mutation b{x}").unwrap();
        assert_eq!(shape(&both, Some("b")), Ok(OperationType::Mutation));
        assert_eq!(shape(&both, None), Err(DocumentError::WhichOperation));
        assert_eq!(shape(&both, Some("c")), Err(DocumentError::NoOperation));
        let one = parse_query("query a{x}").unwrap();
        assert_eq!(shape(&one, None), Ok(OperationType::Query));
    }

    #[test]
    fn variables_are_counted_at_every_depth() {
        let many = serde_json::json!({ "v": { "w": vec![vec![0_u8; 2]; GRAPHQL_VALUES_MAX / 3] } });
        assert_eq!(
            check_variables(&Variables::from_json(many)),
            Err(DocumentError::Values)
        );
        let few = serde_json::json!({ "v": [1, { "w": [2, 3] }] });
        assert_eq!(check_variables(&Variables::from_json(few)), Ok(()));
    }
}
