//! Waits until every message that was pushed has ended.

use std::cell::RefCell;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::error::Result;
use crate::net::management::{Management, Trouble};
use crate::tools::queue::drain::{Figures, Watch};
use crate::tools::queue::tally::Tally;
use crate::tools::queue::target::{NAME, Target};

use serde_json::Value;
use std::time::Duration;

/// Wait before the management API is asked again after it did not answer.
const RETRY: Duration = Duration::from_secs(10);

/// Product that clients of Tael name to the broker.
const PRODUCT: &str = "Tael";

/// Returns when no message is left. All have been confirmed before. Workers of Tael report each end.
/// Others do not: then the queue must be empty, and nothing may hold its messages.
///
/// # Errors
/// None at present: without the management API only reports count.
pub async fn wait(target: &Target, tally: &RefCell<Tally>, news: &Notify) -> Result<()> {
    let reported = async {
        while tally.borrow().left() > 0 {
            news.notified().await;
        }
    };
    tokio::select! {
        biased;
        () = reported => {}
        () = drained(target, tally) => tally.borrow_mut().drained(),
    }
    Ok(())
}

/// Returns when others have worked the queue empty. While a worker of Tael may hold a message, it waits
/// for ever: that one reports.
async fn drained(target: &Target, tally: &RefCell<Tally>) {
    let api = target.api();
    let (mut warned, mut told) = (false, false);
    loop {
        let Err(trouble) = watch(&api, target, tally, &mut told).await else {
            return;
        };
        if !std::mem::replace(&mut warned, true) {
            warn!(
                "the management API does not answer: {}; only messages that workers of Tael report \
                 will count as done",
                trouble.cause()
            );
        }
        sleep(RETRY).await;
    }
}

async fn watch(
    api: &Management,
    target: &Target,
    tally: &RefCell<Tally>,
    told: &mut bool,
) -> Result<(), Trouble> {
    let mut watch = Watch::new(target.interval);
    loop {
        let queue = api.queue(&target.url.vhost, &target.url.queue).await?;
        if has_reporter(&queue) {
            tally.borrow_mut().has_reporter = true;
        }
        if watch.polled(Figures::of(&queue), Instant::now()) {
            let is_reported = tally.borrow().has_reporter || is_client_there(api, target).await;
            if !is_reported {
                return Ok(());
            }
            if !std::mem::replace(told, true) {
                let left = tally.borrow().left();
                warn!(
                    "queue '{}' is empty, and {left} messages are not reported: a client of Tael may \
                     have accepted them; waiting for its reports",
                    target.shown()
                );
            }
            watch.restart();
        }
        sleep(watch.pause()).await;
    }
}

/// Returns whether a consumer of the queue is a client of Tael.
fn has_reporter(queue: &Value) -> bool {
    let consumers = queue.get("consumer_details").and_then(Value::as_array);
    let tags = consumers.into_iter().flatten();
    let mut tags = tags.filter_map(|consumer| consumer.get("consumer_tag")?.as_str());
    tags.any(|tag| tag.starts_with("tael-"))
}

/// Returns whether a client of Tael is connected to the virtual host, as far as the API says so. One that
/// has no free job does not consume.
async fn is_client_there(api: &Management, target: &Target) -> bool {
    let vhost = crate::model::url::percent_encoded(&target.url.vhost, "");
    let Ok(list) = api.get(&format!("/api/vhosts/{vhost}/connections")).await else {
        return false;
    };
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter().any(|connection| {
        let properties = connection.get("client_properties");
        let text = |name: &str| properties?.get(name)?.as_str();
        let name = text("connection_name").unwrap_or_default();
        text("product") == Some(PRODUCT) && !name.starts_with(NAME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clients_are_known_by_their_tags() {
        let queue =
            |tag: &str| json!({"consumer_details": [{"consumer_tag": "x"}, {"consumer_tag": tag}]});
        assert!(has_reporter(&queue("tael-1")));
        assert!(!has_reporter(&queue("ctag1")));
        assert!(!has_reporter(&json!({})));
    }
}
