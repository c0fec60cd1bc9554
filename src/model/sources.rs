//! Finds the pipelines whose statuses a topic filter matches, without a search through all of them.

use std::collections::HashMap;

use crate::model::topic::{Filter, PipelineTopics};

/// The pipelines that a filter matches.
pub(super) enum Sources {
    /// All of them.
    All,
    /// The one at this place.
    One(usize),
    /// None of them.
    Outside,
}

/// Returns which of the pipelines in `places` have statuses that `filter` matches. Their topics
/// differ in one level only. The filter names that level, leaves it open, or does not match it.
pub(super) fn sources(root: &str, filter: &Filter, places: &HashMap<&str, usize>) -> Sources {
    let hears = |who: &str| filter.matches(&PipelineTopics::new(root, who).status());
    // No pipeline can have this name (`check_who`), so only a wildcard matches it.
    if places.len() > 1 && hears(" ") {
        return Sources::All;
    }
    let mut levels = filter.as_str().split('/');
    let named = levels.find(|who| places.contains_key(who) && hears(who));
    named
        .and_then(|who| places.get(who))
        .map_or(Sources::Outside, |place| Sources::One(*place))
}

#[cfg(test)]
mod tests {
    use crate::model::network::{MAX_EDGES, MAX_TOPICS, MAX_TRIGGERS, Network};
    use serde_json::json;

    #[test]
    fn large_graphs_are_drawn_without_a_search_and_cut() {
        let mut network = Network::default();
        let triggers = |n: usize| {
            let topics = |t: usize| (0..MAX_TOPICS).map(move |k| format!("t/{n}/{t}/{k}"));
            let trigger = |t| json!({"name": "t", "topics": topics(t).collect::<Vec<_>>()});
            (0..MAX_TRIGGERS).map(trigger).collect::<Vec<_>>()
        };
        for n in 0..8 {
            let payload = json!({"state": "online", "triggers": triggers(n)});
            let topic = format!("lab/infrastructure/pipelines/p{n}/presence");
            network.add("lab", &topic, payload.as_object().expect("object"));
        }
        let graph = network.graph("lab");
        let edges = graph.mermaid().matches(" --> ").count();
        assert_eq!(edges, MAX_EDGES);
        assert!(graph.cut().is_some());
    }

    #[test]
    fn one_pipeline_that_hears_all_hears_topics_from_outside() {
        let mut network = Network::default();
        let trigger = json!({"name": "t", "topics": ["$share/g/lab/#"]});
        let payload = json!({"state": "online", "triggers": [trigger]});
        let topic = "lab/infrastructure/pipelines/p/presence";
        network.add("lab", topic, payload.as_object().expect("object"));
        let mermaid = network.graph("lab").mermaid();
        assert!(mermaid.contains("t0 --> p0"), "{mermaid}");
    }
}
