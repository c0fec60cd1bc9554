use super::*;

fn filters(list: &[&str]) -> Vec<Filter> {
    let filters = list.iter().map(|f| Filter::new(*f).expect("filter"));
    filters.collect()
}

fn texts(filters: &[Filter]) -> Vec<&str> {
    filters.iter().map(Filter::as_str).collect()
}

/// Answers all requests, and returns them: `+` for SUBSCRIBE.
fn settle(table: &mut FilterTable) -> Vec<String> {
    let mut asked = Vec::new();
    while let Some(ask) = table.next() {
        match ask {
            Ask::Subscribe {
                number, filters, ..
            } => {
                asked.push(format!("+{}", texts(&filters).join(" ")));
                table.subscribed(number, filters.iter().map(|_| Ok(())).collect());
            }
            Ask::Unsubscribe { number, filter } => {
                asked.push(format!("-{filter}"));
                table.unsubscribed(number);
            }
        }
    }
    assert!(table.is_settled() && table.is_answered());
    asked
}

#[test]
fn what_is_not_wanted_goes_after_what_is() {
    let mut table = FilterTable::new(&filters(&["a", "b"]));
    table.know(filters(&["a", "old/1", "old/2"]));
    assert_eq!(table.next(), None, "there is no connection");
    table.connected(true);
    let Some(Ask::Subscribe {
        number,
        filters: asked,
        identify: false,
        again: false,
        ..
    }) = table.next()
    else {
        panic!("not subscribed")
    };
    assert_eq!(
        texts(&asked),
        ["a"],
        "the broker holds it without identifier"
    );
    let Some(Ask::Subscribe {
        number: second,
        identify: true,
        fresh: true,
        ..
    }) = table.next()
    else {
        panic!("not subscribed")
    };
    assert_eq!(table.next(), None, "not before the answer");
    assert_eq!(texts(&table.held()), ["a", "b", "old/1", "old/2"]);
    table.subscribed(second, vec![Ok(())]);
    let none = table.subscribed(number, vec![Ok(())]);
    assert!(none.is_empty() && table.is_answered() && !table.is_settled());
    assert_eq!(settle(&mut table), ["-old/1", "-old/2"]);
    assert_eq!(texts(&table.held()), ["a", "b"]);
    // The broker may be another one, with an older state.
    table.disconnected();
    table.connected(true);
    assert_eq!(settle(&mut table), ["+a b"]);
    table.connected(false);
    assert!(table.held().is_empty());
    assert_eq!(settle(&mut table), ["+a b"]);
}

#[test]
fn changes_before_the_answers_come_out_right() {
    let mut table = FilterTable::new(&filters(&["a"]));
    table.connected(false);
    let Some(Ask::Subscribe { number: first, .. }) = table.next() else {
        panic!("not subscribed")
    };
    assert!(table.want(&filters(&["b"])));
    let Some(Ask::Subscribe { number: second, .. }) = table.next() else {
        panic!("not subscribed")
    };
    assert!(table.want(&filters(&["c", "a"])));
    // The answers come in the other order; the refused filter is named.
    let refused = table.subscribed(second, vec![Err(Error::data("no"))]);
    assert_eq!(refused[0].0.as_str(), "b");
    table.subscribed(first, vec![Ok(())]);
    assert_eq!(table.subscribed(first, vec![Ok(())]), []);
    assert_eq!(settle(&mut table), ["+c", "-b"]);
    assert_eq!(texts(&table.held()), ["a", "c"]);
    // A filter that is wanted again while it is given up is requested again.
    assert!(!table.want(&filters(&["c"])));
    let Some(Ask::Unsubscribe { number, .. }) = table.next() else {
        panic!("not unsubscribed")
    };
    assert!(table.want(&filters(&["a", "c"])));
    assert_eq!(table.next(), None);
    table.unsubscribed(number);
    assert_eq!(settle(&mut table), ["+a"]);
}

#[test]
fn requests_are_small_and_few_at_a_time() {
    let names: Vec<String> = (0..1000).map(|n| format!("t/{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = FilterTable::new(&filters(&all));
    table.connected(false);
    let mut numbers = Vec::new();
    while let Some(Ask::Subscribe {
        number,
        filters,
        identify: false,
        ..
    }) = table.next()
    {
        assert_eq!(filters.len(), MAX_FILTERS);
        numbers.push(number);
    }
    assert_eq!(numbers.len(), MAX_UNDER_WAY);
    for number in numbers {
        assert!(table.subscribed(number, Vec::new()).len() == MAX_FILTERS);
    }
    assert_eq!(settle(&mut table).len(), 1000 / MAX_FILTERS - MAX_UNDER_WAY);
    assert_eq!(table.held().len(), 1000 - MAX_UNDER_WAY * MAX_FILTERS);
}

#[test]
fn filters_with_topics_in_common_are_told_apart() {
    let mut table = FilterTable::new(&filters(&["a/+", "+/b", "c"]));
    table.connected(false);
    let mut alone = Vec::new();
    while let Some(ask) = table.next() {
        if let Ask::Subscribe {
            filters, identify, ..
        } = ask
        {
            alone.push((filters.len(), identify));
        }
    }
    assert_eq!(alone, [(1, true), (1, true), (1, false)]);
    // A filter that comes to overlap gets an identifier.
    let mut table = FilterTable::new(&filters(&["a/+"]));
    table.connected(false);
    assert_eq!(settle(&mut table), ["+a/+"]);
    assert!(table.want(&filters(&["a/+", "+/b"])));
    assert_eq!(settle(&mut table), ["+a/+", "++/b"]);
}
