use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(text: &str) -> Result<Call, Flaw> {
    call(text.as_bytes())
}

/// Returns the text of a call with one parameter, whose element is `value`.
fn with(value: &str) -> String {
    format!(
        "<?xml version='1.0'?><methodCall><methodName>m</methodName><params><param>{value}\
         </param></params></methodCall>"
    )
}

/// Returns the value of a type.
fn value(inner: &str) -> Result<Value, Flaw> {
    let mut call = read(&with(&format!("<value>{inner}</value>")))?;
    assert_eq!(call.params.len(), 1);
    Ok(call.params.remove(0))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn calls_of_python_are_read() {
    let call = call(include_bytes!(
        "../../../../tests/fixtures/fuzz/xmlrpc/python"
    ));
    let call = call.expect("call");
    assert_eq!(call.method, "workflowmgr.handleEvent");
    assert_eq!(call.params[0], text("finished"));
    let bytes: Vec<u8> = (0..100).collect();
    let json = json!({
        "int": -2_147_483_648_i64, "zero": 0, "true": true, "false": false,
        "double": -2.5e-07, "large": 1e300, "empty": "",
        // Python does not escape the carriage return, and XML reads a line feed.
        "text": "a<b>&\"'é€😀\n\t ]]> ",
        "time": "19980717T14:08:55", "date": "20261127T02:30:00",
        "bytes": base64::encode_padded(&bytes), "none": null,
        "array": [1, [2, "x"], {}, []], "struct": {"a": {"b": ["c"]}},
    });
    assert_eq!(call.params[1].to_json(), json);
    let attributes = call.params[1].to_attributes().expect("attributes");
    assert_eq!(Json::Object(attributes), json);
    assert_eq!(call.params[0].to_attributes(), None);
    let Value::Struct(members) = &call.params[1] else {
        panic!("{call:?}");
    };
    let kinds: Vec<&str> = members.iter().map(|(_, value)| value.kind()).collect();
    assert_eq!(
        kinds[8..12],
        ["dateTime.iso8601", "dateTime.iso8601", "base64", "nil"]
    );
    assert_eq!(members[10].1, Value::Bytes(bytes));
}

#[test]
fn calls_in_latin_1_are_read() {
    let seed = include_bytes!("../../../../tests/fixtures/fuzz/xmlrpc/python-latin-1");
    let call = call(seed).expect("call");
    assert_eq!(call.params[0], text("hé"));
    assert_eq!(call.params[1].to_json(), json!({"ü": ["ä"]}));
}

#[test]
fn calls_of_apache_are_read() {
    let seed = include_bytes!("../../../../tests/fixtures/fuzz/xmlrpc/apache");
    let found = call(seed).expect("call");
    assert_eq!(found.params[0], text("finished"));
    assert_eq!(
        found.params[1].to_json(),
        json!({"Dataset": ["abc"], "Run": 7})
    );
    let seed = include_bytes!("../../../../tests/fixtures/fuzz/xmlrpc/extensions");
    let found = call(seed).expect("call");
    assert_eq!(found.method, "m");
    let member = Value::Struct(vec![("n".to_owned(), text("v"))]);
    assert_eq!(
        found.params,
        [Value::Nil, Value::Int(i64::MAX), text("<b>&€x"), member]
    );
    for none in [
        "<methodCall><methodName>a.b</methodName></methodCall>",
        "<methodCall><methodName>a.b</methodName><params/></methodCall>",
        "\n<methodCall>\n<methodName>a.b</methodName>\n<params>\n</params>\n</methodCall>\n",
    ] {
        let expected = Call {
            method: "a.b".to_owned(),
            params: Vec::new(),
        };
        assert_eq!(read(none), Ok(expected));
    }
}

#[test]
fn text_keeps_its_white_space() {
    for (inner, expected) in [
        ("", ""),
        ("  ", "  "),
        (" a ", " a "),
        ("<string/>", ""),
        ("<string> a\r\nb </string>", " a\nb "),
        ("\n <string>a</string>\n", "a"),
        ("<string>a<!-- c -->b</string>", "ab"),
        ("<string><![CDATA[&amp;]]></string>", "&amp;"),
        ("a&#13;&#10;&#x1F600;&lt;&gt;&quot;&apos;", "a\r\n😀<>\"'"),
    ] {
        assert_eq!(value(inner), Ok(text(expected)), "{inner}");
    }
}

#[test]
fn numbers_are_checked() {
    for (inner, expected) in [
        ("<int>2147483647</int>", Value::Int(2_147_483_647)),
        ("<i4>-2147483648</i4>", Value::Int(-2_147_483_648)),
        ("<i4> +7 </i4>", Value::Int(7)),
        ("<i8>-9223372036854775808</i8>", Value::Int(i64::MIN)),
        ("<i1>-128</i1>", Value::Int(-128)),
        ("<boolean>1</boolean>", Value::Bool(true)),
        ("<double>-0.5</double>", Value::Double(-0.5)),
        ("<double>1e+16</double>", Value::Double(1e16)),
    ] {
        assert_eq!(value(inner), Ok(expected), "{inner}");
    }
    for inner in [
        "<int>2147483648</int>",
        "<i4>-2147483649</i4>",
        "<i8>9223372036854775808</i8>",
        "<i1>128</i1>",
        "<i2>32768</i2>",
        "<int></int>",
        "<int>1.0</int>",
        "<int>0x1</int>",
        "<int>1 2</int>",
        "<boolean>true</boolean>",
        "<boolean>2</boolean>",
        "<double>nan</double>",
        "<double>inf</double>",
        "<double>1e999</double>",
        "<double></double>",
        "<double>1,5</double>",
        "<base64>a</base64>",
        "<base64>-_8=</base64>",
        "<nil>x</nil>",
    ] {
        let flaw = value(inner).expect_err(inner);
        assert!(matches!(flaw, Flaw::Wrong { .. }), "{inner}: {flaw}");
    }
}

#[test]
fn times_are_checked() {
    for time in [
        "19980717T14:08:55",
        "1998-07-17T14:08:55Z",
        "20261127T02:30:00.123+0100",
        "2026-11-27T02:30:00-01:00",
        "19980717T24:00:00",
    ] {
        let found = value(&format!("<dateTime.iso8601>{time}</dateTime.iso8601>"));
        assert_eq!(found, Ok(Value::Time(time.to_owned())));
    }
    for time in [
        "",
        "now",
        "19981317T14:08:55",
        "19980732T14:08:55",
        "19980717T25:08:55",
        "19980717T14:60:55",
        "19980717T14:08:61",
        "1998-0717T14:08:55",
        "19980717 14:08:55",
        "19980717T14:08",
        "+9980717T14:08:55",
        "19980717T14:08:55+",
        "19980717T14:08:55Zx",
        "19980717T14:08:55é",
    ] {
        let found = value(&format!("<dateTime.iso8601>{time}</dateTime.iso8601>"));
        assert!(found.is_err(), "{time}");
    }
}

#[test]
fn entities_and_document_types_are_refused() {
    let bomb = call(include_bytes!(
        "../../../../tests/fixtures/fuzz/xmlrpc/bomb"
    ));
    assert_eq!(bomb, Err(Flaw::DocumentType));
    for name in ["a", "nbsp", "#", "#x", "#-1", "#+65", "#xg"] {
        let flaw = value(&format!("&{name};")).expect_err(name);
        assert_eq!(flaw, Flaw::Entity(name.to_owned()));
    }
    for code in ["0", "8", "55296", "65535", "1114112"] {
        let flaw = value(&format!("&#{code};")).expect_err(code);
        assert_eq!(flaw, Flaw::Character(code.parse().expect("number")));
    }
    assert!(matches!(value("a & b"), Err(Flaw::Xml(_))));
    assert_eq!(value("a\u{1}"), Err(Flaw::Character(1)));
}

#[test]
fn a_call_is_bounded() {
    let nested = |depth: usize| {
        let (open, close) = ("<value><array><data>", "</data></array></value>");
        with(&(open.repeat(depth) + "<value>x</value>" + &close.repeat(depth)))
    };
    assert!(read(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(read(&nested(MAX_DEPTH + 1)), Err(Flaw::TooDeep));
    // Nothing is read behind that.
    let endless = with(&"<value><array><data>".repeat(40_000));
    assert_eq!(read(&endless), Err(Flaw::TooDeep));
    let structs = with(&"<value><struct><member><name/>".repeat(20_000));
    assert_eq!(read(&structs), Err(Flaw::TooDeep));

    let wide = |count: usize| {
        with(&format!(
            "<value><array><data>{}</data></array></value>",
            "<value/>".repeat(count)
        ))
    };
    // Seven are around them.
    assert!(read(&wide(MAX_ELEMENTS - 7)).is_ok());
    assert_eq!(read(&wide(MAX_ELEMENTS - 6)), Err(Flaw::TooMany));

    let whole = with("<value></value>");
    let fill = |length: usize| with(&format!("<value>{}</value>", "x".repeat(length)));
    assert!(read(&fill(MAX_BYTES - whole.len())).is_ok());
    let large = fill(MAX_BYTES - whole.len() + 1);
    assert_eq!(read(&large), Err(Flaw::TooLarge(MAX_BYTES + 1)));
}

#[test]
fn what_is_no_call_is_refused_with_one_line() {
    let unknown = with("<value><what>1</what></value>");
    let two = with("<value><int>1</int><int>2</int></value>");
    let mixed = with("<value>a<int>1</int></value>");
    let nested = with("<value><int><b>1</b></int></value>");
    let no_name = with("<value><struct><member><value/></member></struct></value>");
    let no_data = with("<value><array></array></value>");
    let behind = with("<value/>") + "<more/>";
    for wrong in [
        "",
        "{}",
        "<",
        "<methodCall>",
        "<methodCall></methodCall>",
        "<methodCall><methodName></methodName></methodCall>",
        "<methodCall><methodName>a b</methodName></methodCall>",
        "<methodCall><methodName>a</methodCall></methodName>",
        "<methodCall><methodName>a</methodName><params><param/></params></methodCall>",
        "<methodCall>x<methodName>a</methodName></methodCall>",
        "<methodResponse/>",
        "text<methodCall><methodName>a</methodName></methodCall>",
        &unknown,
        &two,
        &mixed,
        &nested,
        &no_name,
        &no_data,
        &behind,
        &with("<value/>").replace("</methodCall>", ""),
    ] {
        let flaw = read(wrong).expect_err(wrong);
        let line = flaw.to_string();
        assert!(!line.is_empty() && !line.contains('\n'), "{wrong}: {line}");
        assert!((-32799..=-32600).contains(&flaw.code()));
    }
}

#[test]
fn encodings_are_those_that_are_declared() {
    let declare = |encoding: &str, text: &[u8]| {
        let head = format!("<?xml version=\"1.0\" encoding=\"{encoding}\"?>");
        let whole = with("<value>@</value>").replacen("<?xml version='1.0'?>", &head, 1);
        let (before, after) = whole.split_once('@').expect("place");
        let bytes = [before.as_bytes(), text, after.as_bytes()].concat();
        call(&bytes).map(|call| call.params[0].clone())
    };
    assert_eq!(declare("utf-8", "é".as_bytes()), Ok(text("é")));
    assert_eq!(declare("US-ASCII", b"e"), Ok(text("e")));
    assert_eq!(declare("ISO-8859-1", b"\xe9"), Ok(text("é")));
    assert_eq!(declare("latin1", b"\xc3\xa9"), Ok(text("Ã©")));
    assert_eq!(declare("UTF-8", b"\xe9"), Err(Flaw::NotText));
    assert!(declare("iso-8859-1", b"\x85").is_ok());
    let other = Err(Flaw::Encoding("koi8-r".to_owned()));
    assert_eq!(declare("koi8-r", b"e"), other);
    for marked in [&b"\xff\xfe<\0"[..], b"\xfe\xff\0<", b"<\0?\0"] {
        let utf16 = Err(Flaw::Encoding("UTF-16".to_owned()));
        assert_eq!(call(marked), utf16);
    }
    let marked = ["\u{feff}", &with("<value>é</value>")].concat();
    assert_eq!(read(&marked).expect("call").params, [text("é")]);
    // Without a declaration.
    assert_eq!(value("é"), Ok(text("é")));
}

#[test]
fn responses_have_the_form_that_clients_expect() {
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<methodResponse>";
    assert_eq!(
        response(&Value::Bool(true)),
        format!(
            "{head}<params><param><value><boolean>1</boolean></value></param></params>\
             </methodResponse>\n"
        )
    );
    assert_eq!(
        fault(1, "a <b> \u{0}é"),
        format!(
            "{head}<fault><value><struct><member><name>faultCode</name><value><int>1</int></value>\
             </member><member><name>faultString</name><value><string>a &lt;b&gt; &#65533;&#233;\
             </string></value></member></struct></value></fault></methodResponse>\n"
        )
    );
    let wide = response(&Value::Int(1 << 40));
    assert!(wide.contains("<i8>1099511627776</i8>"), "{wide}");
    let double = response(&Value::Double(1e-7));
    assert!(double.contains("<double>0.0000001</double>"), "{double}");
    assert!(response(&Value::Double(f64::NAN)).contains("<string>NaN</string>"));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        prop::num::f64::NORMAL.prop_map(Value::Double),
        any::<String>().prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((any::<String>(), inner), 0..5).prop_map(Value::Struct),
        ]
    })
}

/// Returns `value` with the characters that XML has.
fn allowed(value: &Value) -> Value {
    let clean = |text: &str| -> String {
        let replaced = |c| if is_allowed(c) { c } else { '\u{fffd}' };
        text.chars().map(replaced).collect()
    };
    match value {
        Value::Text(text) => Value::Text(clean(text)),
        Value::Array(values) => Value::Array(values.iter().map(allowed).collect()),
        Value::Struct(members) => {
            let members = members.iter();
            Value::Struct(
                members
                    .map(|(name, value)| (clean(name), allowed(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(value in values()) {
        let mut element = String::new();
        write::put(&mut element, &value);
        prop_assert!(element.is_ascii());
        let call = read(&with(&element)).expect("own text");
        prop_assert_eq!(&call.params, &[allowed(&value)]);
        let _ = call.params[0].to_json();
    }

    #[test]
    fn no_text_breaks_it(text in "[<>/&;#x!\\[\\]?'\" a-z0-9é-]{0,80}", bytes in any::<Vec<u8>>()) {
        let _ = (read(&text), value(&text), call(&bytes));
    }

    #[test]
    fn no_end_is_too_early(end in any::<prop::sample::Index>()) {
        let seed = include_bytes!("../../../../tests/fixtures/fuzz/xmlrpc/python");
        let whole = seed.trim_ascii_end().len();
        let part = call(&seed[..end.index(whole)]);
        prop_assert!(part.is_err());
    }
}
