//! Variables of a command that its statuses repeat.

use crate::model::variables::Value;

/// Returns the variables that the operator means by `names`, and their keys in a status.
///
/// A name is upper-cased, as in the earlier client of Tael: `date` means `DATE`. An exported
/// variable whose name differs only in case keeps its own name as the key. Otherwise `NAME` is the
/// attribute that is exported as `PREFIX_NAME`. Unknown names are left out, and so are repeated
/// ones.
pub fn select<'a>(
    names: &[String],
    prefix: &str,
    variables: &'a [(String, Value)],
) -> Vec<(String, &'a Value)> {
    let mut selected: Vec<(String, &Value)> = Vec::with_capacity(names.len());
    for name in names {
        let upper = name.to_ascii_uppercase();
        let prefixed = format!("{prefix}_{upper}");
        let find = |wanted: &dyn Fn(&str) -> bool| variables.iter().find(|(n, _)| wanted(n));
        let found = find(&|n| n == name)
            .or_else(|| find(&|n| n.eq_ignore_ascii_case(name)))
            .map(|(n, value)| (n.clone(), value))
            .or_else(|| find(&|n| n == prefixed).map(|(_, value)| (upper, value)));
        if let Some((key, value)) = found
            && selected.iter().all(|(taken, _)| *taken != key)
        {
            selected.push((key, value));
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_whichever_case_and_with_the_prefix() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let variables: Vec<(String, Value)> = ["DATE", "seq_LANE", "seq_DATE", "ATTR_HOW"]
            .into_iter()
            .map(|name| (name.to_owned(), Value::from(name.to_owned())))
            .collect();
        let keys = |names: &[&str], prefix: &str| -> Vec<String> {
            let selected = select(&list(names), prefix, &variables);
            let pair = |(key, value): &(String, &Value)| {
                format!("{key}={}", String::from_utf8_lossy(value.as_bytes()))
            };
            selected.iter().map(pair).collect()
        };
        assert_eq!(keys(&["date"], "seq"), ["DATE=DATE"]);
        assert_eq!(keys(&["DATE", "Date"], "seq"), ["DATE=DATE"]);
        assert_eq!(keys(&["SEQ_LANE"], "seq"), ["seq_LANE=seq_LANE"]);
        assert_eq!(keys(&["lane"], "seq"), ["LANE=seq_LANE"]);
        assert_eq!(
            keys(&["how", "attr_how"], "ATTR"),
            ["HOW=ATTR_HOW", "ATTR_HOW=ATTR_HOW"]
        );
        assert_eq!(keys(&["none"], "ATTR"), [""; 0]);
    }
}
