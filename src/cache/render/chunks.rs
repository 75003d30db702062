//! What chat and completions have in common: chunks that each hold pieces of some choices, and what the whole answer
//! says of itself around them.
//!
//! llama-server ends each of several choices by itself, with usage and timings of its own; a plain answer to the same
//! request tells those of the first choice alone.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::events;
use super::json::{self, MEMBERS_MAX, NULL, Object, Text};

/// The members that stand on every chunk, in the order in which llama-server writes them in a plain answer.
const HEAD: [&str; 3] = ["created", "model", "system_fingerprint"];

/// An answer that is being gathered from its chunks; `S` is what a choice says.
#[derive(Debug, Default)]
pub(super) struct Answer<'a, S> {
    /// Members of the chunks themselves.
    head: Object<'a>,
    choices: BTreeMap<u64, Choice<'a, S>>,
    reports: Vec<Report<'a>>,
    /// The choice that was finished last: the next report is of it.
    finished: Option<u64>,
}

/// One choice so far.
#[derive(Debug, Default)]
pub(super) struct Choice<'a, S> {
    pub(super) said: S,
    pub(super) logprobs: Logprobs<'a>,
    pub(super) others: Object<'a>,
    pub(super) finish_reason: Option<&'a str>,
}

/// What was said of the cost of one choice.
#[derive(Debug)]
struct Report<'a> {
    index: Option<u64>,
    usage: Option<&'a str>,
    timings: Option<&'a str>,
}

impl<'a, S: Default> Answer<'a, S> {
    /// Gathers a stream. `tell` takes what one chunk says of one choice out of its members.
    pub(super) fn gather(
        stream: &'a str,
        object: &str,
        mut tell: impl FnMut(&mut S, &mut Object<'a>) -> Option<()>,
    ) -> Option<Self> {
        let mut answer = Self::default();
        for event in events::split_done(stream)? {
            let mut chunk = event.object()?;
            (json::string(chunk.raw("object")?)? == object).then_some(())?;
            let choices = json::items(chunk.raw("choices")?)?;
            let mut finishes = choices.is_empty();
            for choice in choices {
                finishes |= answer.choice(Object::parse(choice)?, &mut tell)?;
            }
            answer.report(&mut chunk, finishes)?;
            // The time of the last chunk is that of the plain answer.
            if let Some(created) = chunk.take("created") {
                answer.head.set("created", created);
            }
            answer.head.agree_all(chunk)?;
        }
        let whole = answer.choices.values().all(|choice| choice.finish_reason.is_some());
        (whole && !answer.choices.is_empty()).then_some(answer)
    }

    /// Takes in a piece of a choice; says whether it is the last.
    fn choice(
        &mut self,
        mut members: Object<'a>,
        tell: &mut impl FnMut(&mut S, &mut Object<'a>) -> Option<()>,
    ) -> Option<bool> {
        let index = json::count(members.raw("index")?)?;
        let choice = self.choices.entry(index).or_default();
        if choice.finish_reason.is_some() {
            return None;
        }
        if let Some(logprobs) = members.raw("logprobs") {
            choice.logprobs.add(logprobs)?;
        }
        choice.finish_reason = members.raw("finish_reason").filter(|reason| *reason != NULL);
        let finishes = choice.finish_reason.is_some();
        tell(&mut choice.said, &mut members)?;
        choice.others.agree_all(members)?;
        if finishes {
            self.finished = Some(index);
        }
        Some(finishes)
    }

    /// Takes in what a chunk says of the cost. Timings and progress on the way are not part of a plain answer.
    fn report(&mut self, chunk: &mut Object<'a>, last: bool) -> Option<()> {
        chunk.take("prompt_progress");
        let usage = chunk.raw("usage").filter(|usage| *usage != NULL);
        let timings = chunk.raw("timings").filter(|timings| *timings != NULL);
        if last {
            self.reports.push(Report { index: self.finished, usage, timings });
            return Some(());
        }
        usage.is_none().then_some(())
    }

    /// The plain answer; `say` makes each of its choices.
    pub(super) fn plain(
        mut self,
        object: &str,
        say: impl Fn(u64, Choice<'a, S>) -> Option<Object<'a>>,
    ) -> Option<Object<'a>> {
        let usage = self.pick(|report| report.usage);
        let timings = self.pick(|report| report.timings);
        let usage = match (usage, timings) {
            (Some(usage), _) => Text::from(usage),
            (None, timings) => counted(timings?)?.into(),
        };
        let choices = self.choices.into_iter().map(|(index, choice)| say(index, choice));
        let choices = choices.collect::<Option<Vec<_>>>()?;
        let mut plain = Object::new().with("choices", json::array(choices));
        HEAD.into_iter().for_each(|name| plain.adopt(&mut self.head, name));
        plain.set("object", json::quoted(object));
        plain.set("usage", usage);
        plain.adopt(&mut self.head, "id");
        if let Some(timings) = timings {
            plain.set("timings", timings);
        }
        plain.set_all(self.head);
        Some(plain)
    }

    /// What is reported of the first choice; of all, if there is only one such report.
    fn pick(&self, of: impl Fn(&Report<'a>) -> Option<&'a str>) -> Option<&'a str> {
        let first = self.choices.keys().next().copied();
        let found: Vec<_> =
            self.reports.iter().filter_map(|report| Some((report.index, of(report)?))).collect();
        match found.as_slice() {
            [(_, only)] => Some(only),
            _ => found.into_iter().rfind(|(index, _)| *index == first).map(|(_, it)| it),
        }
    }
}

/// The logprobs of a choice: lists that come in pieces, by name.
#[derive(Debug, Default)]
pub(super) struct Logprobs<'a> {
    /// Whether there was one at all, if only a null.
    named: bool,
    lists: Option<Vec<(Cow<'a, str>, Vec<&'a str>)>>,
    /// What is no list.
    others: Object<'a>,
}

impl<'a> Logprobs<'a> {
    fn add(&mut self, text: &'a str) -> Option<()> {
        self.named = true;
        if text == NULL {
            return Some(());
        }
        let lists = self.lists.get_or_insert_default();
        for (name, value) in Object::parse(text)? {
            let Cow::Borrowed(value) = value else { return None };
            let full = lists.len() == MEMBERS_MAX;
            let own = lists.iter_mut().find(|(own, _)| *own == name);
            match (json::inside(value), own) {
                (Some(piece), Some((_, pieces))) => pieces.push(piece),
                (Some(_), None) if full => return None,
                (Some(piece), None) => lists.push((name, vec![piece])),
                (None, _) => self.others.agree(name, value)?,
            }
        }
        Some(())
    }

    /// All of it: null if there was nothing else, `None` if there was not even that.
    pub(super) fn whole(self) -> Option<Text<'a>> {
        let Some(lists) = self.lists else { return self.named.then_some(NULL.into()) };
        let mut whole = Object::new();
        for (name, pieces) in lists {
            whole.set(name, json::joined(pieces));
        }
        whole.agree_all(self.others)?;
        Some(whole.into())
    }
}

/// The usage that llama-server reports beside these timings.
pub(super) fn counted(timings: &str) -> Option<Object<'static>> {
    let timings = Object::parse(timings)?;
    let count = |name: &str| timings.get(name).and_then(|text| json::count(text));
    let (cached, read, written) = (count("cache_n")?, count("prompt_n")?, count("predicted_n")?);
    let prompt = cached.checked_add(read)?;
    let details = Object::new().with("cached_tokens", cached.to_string());
    let usage = Object::new()
        .with("completion_tokens", written.to_string())
        .with("prompt_tokens", prompt.to_string())
        .with("total_tokens", prompt.checked_add(written)?.to_string());
    Some(usage.with("prompt_tokens_details", details))
}

/// A plain answer taken apart.
#[derive(Debug)]
pub(super) struct Whole<'a> {
    pub(super) choices: Vec<Object<'a>>,
    /// What stands on every chunk.
    pub(super) head: Object<'a>,
    pub(super) usage: Option<Text<'a>>,
    pub(super) timings: Option<Text<'a>>,
    /// Members that are not known: told with the last chunk.
    pub(super) others: Object<'a>,
}

impl<'a> Whole<'a> {
    /// Takes apart an answer whose `object` this is; its choices must stand in their order and be finished.
    pub(super) fn of(mut answer: Object<'a>, object: &str) -> Option<Self> {
        (json::string(answer.raw("object")?)? == object).then_some(())?;
        let choices = json::items(answer.raw("choices")?)?;
        let choices: Vec<_> = choices.into_iter().map(Object::parse).collect::<Option<_>>()?;
        let mut last = None;
        for choice in &choices {
            let index = json::count(choice.get("index")?)?;
            if last.is_some_and(|last| last >= index) || !choice.has("finish_reason") {
                return None;
            }
            last = Some(index);
        }
        last?;
        let mut head = Object::new();
        HEAD.into_iter().chain(["id"]).for_each(|name| head.adopt(&mut answer, name));
        let (usage, timings) = (answer.take("usage"), answer.take("timings"));
        answer.get("prompt_progress").is_none().then_some(())?;
        Some(Self { choices, head, usage, timings, others: answer })
    }
}
