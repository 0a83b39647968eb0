//! Every request against the server's schema: fields, arguments, types of variables, nothing required left out.

use super::{ALL, Query};
use async_graphql::Positioned;
use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, Field, FieldDefinition, InputValueDefinition,
    OperationType, Selection, SelectionSet, ServiceDocument, TypeDefinition, TypeKind,
    TypeSystemDefinition, VariableDefinition,
};
use async_graphql::parser::{parse_query, parse_schema};
use std::collections::HashMap;

struct Schema {
    types: HashMap<String, TypeDefinition>,
}

impl Schema {
    /// The server's own, as it is compiled in; that docs/schema.graphql is the same is the server's test.
    fn of_the_server() -> Self {
        let text = slipway_scheduler::sdl();
        let document: ServiceDocument = parse_schema(text).expect("the schema parses");
        let types = document.definitions.into_iter().filter_map(|definition| {
            if let TypeSystemDefinition::Type(definition) = definition {
                Some((definition.node.name.to_string(), definition.node))
            } else {
                None
            }
        });
        Self {
            types: types.collect(),
        }
    }

    fn fields(&self, name: &str) -> Option<&[Positioned<FieldDefinition>]> {
        match &self.types.get(name)?.kind {
            TypeKind::Object(object) => Some(&object.fields),
            TypeKind::Interface(interface) => Some(&interface.fields),
            TypeKind::Scalar
            | TypeKind::Union(_)
            | TypeKind::Enum(_)
            | TypeKind::InputObject(_) => None,
        }
    }

    fn check(&self, query: Query) -> Result<(), String> {
        let document: ExecutableDocument = parse_query(query.text).map_err(|e| e.to_string())?;
        let DocumentOperations::Single(operation) = document.operations else {
            return Err("several operations".to_owned());
        };
        let root = match operation.node.ty {
            OperationType::Query => "Query",
            OperationType::Mutation => "Mutation",
            OperationType::Subscription => "Subscription",
        };
        let root = if self.types.contains_key(root) {
            root
        } else {
            "SubscriptionRoot"
        };
        let first = operation
            .node
            .selection_set
            .node
            .items
            .first()
            .map(|item| &item.node);
        if !matches!(first, Some(Selection::Field(field)) if field.node.name.node == query.field) {
            return Err(format!("the first field is not {}", query.field));
        }
        self.selection(
            root,
            &operation.node.selection_set.node,
            &operation.node.variable_definitions,
        )
    }

    fn selection(
        &self,
        on: &str,
        set: &SelectionSet,
        variables: &[Positioned<VariableDefinition>],
    ) -> Result<(), String> {
        let fields = self.fields(on);
        match (fields, set.items.is_empty()) {
            (None, true) => return Ok(()),
            (None, false) => return Err(format!("{on} has no fields")),
            (Some(_), true) => return Err(format!("{on} needs a selection")),
            (Some(_), false) => {}
        }
        for item in &set.items {
            let Selection::Field(field) = &item.node else {
                return Err("a fragment".to_owned());
            };
            let name = &field.node.name.node;
            let definition = fields
                .into_iter()
                .flatten()
                .find(|definition| definition.node.name.node == *name)
                .ok_or_else(|| format!("{on} has no field {name}"))?;
            arguments(&definition.node.arguments, &field.node, variables)?;
            let of = definition.node.ty.node.to_string();
            let of = of.trim_matches(['[', ']', '!']);
            self.selection(of, &field.node.selection_set.node, variables)?;
        }
        Ok(())
    }

    fn inputs(&self, name: &str) -> &[Positioned<InputValueDefinition>] {
        let TypeKind::InputObject(input) = &self.types[name].kind else {
            panic!("{name} is no input object");
        };
        &input.fields
    }

    fn type_of_input(&self, name: &str, field: &str) -> String {
        let fields = self.inputs(name);
        let found = fields.iter().find(|it| it.node.name.node == field);
        let of = found
            .expect("a field of the input")
            .node
            .ty
            .node
            .to_string();
        of.replace(['[', ']', '!'], "")
    }

    /// What we send as an input object: every name known, every required one there.
    #[track_caller]
    fn check_input(&self, name: &str, sent: &[&str]) {
        let fields = self.inputs(name);
        for one in sent {
            assert!(
                fields.iter().any(|field| field.node.name.node == *one),
                "{name} has no {one}"
            );
        }
        for field in fields {
            let required = !field.node.ty.node.nullable && field.node.default_value.is_none();
            let field = field.node.name.node.as_str();
            assert!(!required || sent.contains(&field), "{name} needs {field}");
        }
    }
}

fn arguments(
    definitions: &[Positioned<InputValueDefinition>],
    field: &Field,
    variables: &[Positioned<VariableDefinition>],
) -> Result<(), String> {
    let name = &field.name.node;
    for (argument, value) in &field.arguments {
        let definition = definitions
            .iter()
            .find(|definition| definition.node.name.node == argument.node)
            .ok_or_else(|| format!("{name} takes no {}", argument.node))?;
        let value = value.node.to_string();
        let variable = value
            .strip_prefix('$')
            .and_then(|value| variables.iter().find(|it| it.node.name.node == value))
            .ok_or_else(|| {
                format!(
                    "{name}({}: {value}) is no variable of the request",
                    argument.node
                )
            })?;
        let given = variable.node.var_type.node.to_string();
        let wanted = definition.node.ty.node.to_string();
        let has_default = definition.node.default_value.is_some();
        let fits = given == wanted
            || given.strip_suffix('!') == Some(&wanted)
            || (has_default && wanted.strip_suffix('!') == Some(&given));
        if !fits {
            return Err(format!(
                "{name}({}: {given}) should be {wanted}",
                argument.node
            ));
        }
    }
    for definition in definitions {
        let required = !definition.node.ty.node.nullable && definition.node.default_value.is_none();
        let argument = &definition.node.name.node;
        if required
            && !field
                .arguments
                .iter()
                .any(|(given, _)| given.node == *argument)
        {
            return Err(format!("{name} needs {argument}"));
        }
    }
    Ok(())
}

#[test]
fn every_request_is_of_the_schema() {
    let schema = Schema::of_the_server();
    let wrong: Vec<String> = ALL
        .iter()
        .filter_map(|(name, query)| {
            schema
                .check(*query)
                .err()
                .map(|why| format!("{name}: {why}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_input_object_is_of_the_schema() {
    let schema = Schema::of_the_server();
    let limits = [
        "idleMs",
        "buildsKept",
        "buildsAgeMs",
        "cpuMillis",
        "memoryBytes",
        "volumeBytes",
    ];
    schema.check_input("CreateOrgInput", &[&["slug"][..], &limits].concat());
    schema.check_input("UpdateOrgInput", &[&["org"][..], &limits].concat());
    schema.check_input("CreateAppInput", &["org", "name"]);
    schema.check_input("CreateTokenInput", &["org", "name", "role", "expiresInMs"]);
    schema.check_input("BuilderInput", &["org", "region", "arch"]);
    schema.check_input(
        "StartBuildInput",
        &[
            "org",
            "app",
            "image",
            "push",
            "frontendAttrs",
            "compression",
            "session",
            "credential",
            "region",
            "arch",
            "tags",
            "tagCredentials",
            "entitlements",
            "cacheFrom",
            "cacheTo",
            "export",
            "load",
            "annotations",
        ],
    );
    let of = |field| schema.type_of_input("StartBuildInput", field);
    let named = ["registry", "username", "password"];
    schema.check_input(&of("tagCredentials"), &named);
    schema.check_input(&of("frontendAttrs"), &["name", "value"]);
    schema.check_input(&of("credential"), &["registry", "username", "password"]);
    schema.check_input(
        "SetRegistryCredentialInput",
        &["org", "registry", "username", "password"],
    );
    schema.check_input("IssueClientCertificateInput", &["org"]);
}

/// The test can fail: a request with a slip in it is found.
#[test]
fn slips_are_found() {
    let schema = Schema::of_the_server();
    for (text, field) in [
        ("query { orgs { id nam } }", "orgs"),
        ("query { orgs }", "orgs"),
        ("query { viewer { token } }", "viewer"),
        ("query($id: String) { build(id: $id) { id } }", "build"),
        ("query { build { id } }", "build"),
        ("query($o: String) { apps(orgg: $o) { id } }", "apps"),
        ("query { orgs { id } }", "apps"),
    ] {
        assert!(schema.check(Query { text, field }).is_err(), "{text}");
    }
}
