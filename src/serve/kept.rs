//! Responses that are kept for later requests, as long as the process runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::request_log::Facts;

/// Most responses that are kept; the oldest make room.
pub(crate) const RESPONSES: usize = 256;
/// Most bytes of JSON that are kept, conversations included.
const BYTES: usize = 64 << 20;

/// A response with the conversation that led to it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) id: String,
    /// The index of the key it was made with; only requests with that key see it.
    asker: Option<usize>,
    /// The response as its client got it.
    pub(crate) response: Value,
    /// The conversation up to the answer and with it, in the form of chat templates, without the
    /// instructions.
    pub(crate) messages: Vec<Value>,
    bytes: usize,
}

impl Kept {
    pub(crate) fn new(
        id: &str,
        asker: Option<usize>,
        response: Value,
        messages: Vec<Value>,
    ) -> Self {
        let size = |value: &Value| value.to_string().len();
        let bytes = size(&response) + messages.iter().map(size).sum::<usize>();
        Self { id: id.to_owned(), asker, response, messages, bytes }
    }
}

impl Kept {
    /// True where it was made with the key of the request that is worked on.
    fn is_askers(&self) -> bool {
        self.asker == Facts::asker()
    }
}

/// The responses that are kept, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Responses(Mutex<VecDeque<Arc<Kept>>>);

impl Responses {
    /// Keeps a response, for which the oldest make room.
    pub(crate) fn keep(&self, kept: Kept) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(Arc::new(kept));
        while all.len() > RESPONSES || all.iter().map(|kept| kept.bytes).sum::<usize>() > BYTES {
            all.pop_front();
        }
    }

    /// Finds a response of whoever asks.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Kept>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|kept| kept.id == id && kept.is_askers()).cloned()
    }

    /// Finds an item of the output of a response of whoever asks, the latest first.
    pub(crate) fn item(&self, id: &str) -> Option<Value> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let items = all
            .iter()
            .rev()
            .filter(|kept| kept.is_askers())
            .filter_map(|kept| kept.response["output"].as_array());
        items.flatten().find(|item| item["id"] == id).cloned()
    }

    /// Forgets a response; false where there is none.
    pub(crate) fn delete(&self, id: &str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|kept| kept.id != id || !kept.is_askers());
        all.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kept(number: usize, text: &str) -> Kept {
        let item = format!("msg_{number}");
        let response = json!({"output": [{"id": item, "text": text}]});
        Kept::new(&format!("resp_{number}"), None, response, vec![json!({"content": text})])
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_size() {
        let all = Responses::default();
        (0..RESPONSES + 3).for_each(|number| all.keep(kept(number, "x")));
        assert!(all.find("resp_2").is_none() && all.find("resp_3").is_some());
        assert_eq!(all.item("msg_258").expect("kept")["text"], "x");
        assert!(all.item("msg_2").is_none());
        let long = "y".repeat(BYTES / 5);
        (1000..1003).for_each(|number| all.keep(kept(number, &long)));
        assert!(all.find("resp_1000").is_none() && all.find("resp_1001").is_some());
        assert!(all.find("resp_258").is_none());
        assert!(all.delete("resp_1001") && !all.delete("resp_1001"));
    }
}
