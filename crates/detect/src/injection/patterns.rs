//! The patterns and their weights, over text in normal form (lower case, nothing invisible).
//!
//! `regex` runs in time linear in the text whatever the pattern; gaps are bounded all the same, so
//! that a match stays within a sentence or two.

use std::sync::LazyLock;

use estoppel_model::text::is_invisible;
use regex::Regex;

use super::{Channel, Hit, Reason};

/// One pattern: why it matters, how much in each channel, and what it matches.
struct Pattern {
    reason: Reason,
    /// Weight in what comes from outside.
    outside: f64,
    /// Weight in a user's prompt, where giving orders is no sign of anything.
    prompt: f64,
    regex: Regex,
}

/// Reason, weights (outside, prompt) and text of each pattern. One that does not compile would be
/// left out silently, so a test compiles them all.
const TABLE: &[(Reason, f64, f64, &str)] = &[
    // Instruction override, in the languages that the corpora and we know. Words that are used of
    // other things, too ("drop the task"), count only beside ones that are not.
    (
        Reason::InstructionOverride,
        0.75,
        0.75,
        r"\b(ignor(e|es|ed|ing)|disregard(ed|ing)?|forget|overlook|neglect|bypass|override|discard|dismiss|abandon|nullify|do not follow|don't follow|stop following|pay no attention to)\b[^.;]{0,30}\b(previous(ly)?|prior|above|earlier|preceding|former|foregoing|past|existing|original|initial|all|any|every|your|the|these|those|my|system|safety)\b[^.;]{0,20}\b(instructions?|prompts?|directives?|directions?|guidelines?|programming|assignments?|prompt ?texts?)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(ignore|disregard|forget|overlook|neglect|bypass|override|discard|dismiss|abandon|delete|erase|drop|skip|omit|cancel)\b[^.;\n]{0,15}\b(previous(ly)?|prior|above|earlier|preceding|former|foregoing|your|all (of )?(the|your|my|these|those|previous|prior|earlier))\b[^.;\n]{0,20}\b(instructions?|rules?|commands?|orders?|tasks?|requests?|restrictions?|constraints?|contexts?|conversations?|training|polic(y|ies)|information|messages?|documents?|statements?|assertions?|tables?|questions?|you (were|have been|are) told|said)\b",
    ),
    (
        Reason::InstructionOverride,
        0.65,
        0.7,
        r"\b(forget|ignore|disregard)\b (about )?(everything|anything|all)\b[^.;\n]{0,20}\b(you (know|have|were|learned|are)|before|above|learned|said|told|previous|prior|until now|so far|that (was|came|has))\b|\b(ignore|disregard|forget)( all| everything| anything)?( of)?( the| what is| what was)? (above|previous|preceding|foregoing)\b( and\b| text|,|\.|:|!| now|$)|\bforget (everything|all (of )?that|about (it|that|this)|this)\b[ .!,;:]",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"(\b(ignorier(e|en|t|st)?|vergiss|vergesst|vergessen|missachte|verwirf)|überspringe?)\b.{0,40}\b(alle[ns]?|vorherig\w*|bisherig\w*|vorig\w*|obige\w*|obenstehend\w*|dein\w*|die|das|was)\b.{0,40}\b(anweisung\w*|instruktion\w*|aufgabe\w*|befehl\w*|aufforderung\w*|regeln?|information\w*|zuordnung\w*|prompt\w*|vorgab\w*|gesagt|davor|oben|text\w*)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(abweichend (zu|von)|entgegen)\b.{0,30}\b(anweisung\w*|instruktion\w*|befehl\w*)",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(oublie[zr]?|ignore[zr]?)\b.{0,30}\b(toutes? les|vos|tes|ces|précédent\w*|ci-dessus)\b.{0,20}\b(instructions?|consignes?|ordres?|directives?|règles?)\b|\b(oublie[zr]?|ignore[zr]?)\b (les|toutes les) (instructions|consignes)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(ignora|ignore|olvida|olvide|omite|descarta|olvídate)\b.{0,30}(\b(instrucci(ón|ones)|indicaciones|reglas|todo lo anterior)|órdenes)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(dimentica|ignora|esqueça|zaboravi|zanemari)\b.{0,40}\b(istruzioni|instruç(ão|ões)|instrukcij\w*|upute|naredb\w*|sve)\b",
    ),
    (
        Reason::InstructionOverride,
        0.5,
        0.55,
        r"\b(new|updated|revised|real|actual|true|neue[ns]?) (system )?(instructions?|prompt|directives?|orders|aufgabe\w*|anweisung\w*)\b\s*(:|is\b|are\b|follow\b|ist\b|lautet)|\b(these|here|those) are (your |the )?new (instructions|orders|rules)\b",
    ),
    (
        Reason::InstructionOverride,
        0.45,
        0.5,
        r"\b(instead of|rather than) (answering|summari[sz]ing|responding to|completing|translating) (the|this|that|what|your|my)\b",
    ),
    (
        Reason::InstructionOverride,
        0.5,
        0.6,
        r"\b(focus on|concentrate on|konzentriere?.{0,20} auf|now (do|complete|perform|carry out)|begin|start|fang\w*) (with )?(your|a|deine\w*|eine\w*) ?(new|next|real|actual|neue\w*) (task|assignment|instruction|goal|objective|mission|aufgabe)",
    ),
    // Markup of conversations, which no data has a reason to hold.
    (
        Reason::RoleMarker,
        0.8,
        0.7,
        r"<\|(im_start|im_end|im_sep|system|user|assistant|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_turn|start_of_turn|endofprompt)\|?>|<(start|end)_of_turn>",
    ),
    (
        Reason::RoleMarker,
        0.7,
        0.7,
        r"\[/?inst\]|<</?sys>>|\[system (message|prompt|note|override)\b[^\]\n]{0,40}\]",
    ),
    (
        Reason::RoleMarker,
        0.65,
        0.6,
        r"(?m)^[ >*]{0,6}(#{1,4} ?|\*\*|-{3,} ?|={3,} ?)(system|new instructions?|system prompt|system message|system note|user prompt|end of (document|context|data|input|tool (output|result)))\s*(\*\*)?\s*(:|-{3,}|={3,}|\*\*|#|$)",
    ),
    (
        Reason::RoleMarker,
        0.6,
        0.5,
        r"</?(system_prompt|system-prompt|system_message|system_instructions?|tool_result|tool_response|tool_output|function_results?|function_calls?|user_query|user_message|assistant_response|untrusted_content|document_content)>|</(system|instructions|context|document|data)>\s*<(system|instructions?|user|assistant)>",
    ),
    (
        Reason::RoleMarker,
        0.4,
        0.4,
        r"(?m)^ ?(system|assistant|developer)( (prompt|message|note|override|instruction))?: ?(you|ignore|disregard|please|sure|ok|the (user|assistant)|do|new|from now|always|never|important|override|your)\b",
    ),
    (
        Reason::RoleMarker,
        0.55,
        0.6,
        r"\b(end|begin|start)(ning)? of (the )?(system prompt|untrusted (data|content)|tool output|original instructions|system instructions)\b",
    ),
    // Another part to play.
    (
        Reason::Persona,
        0.5,
        0.5,
        r"\byou are (now|no longer) (an? |the |my |in |going |bound |[a-z]+(gpt|bot|ai)\b)|\bfrom now on,? (you( are|'re| will| must| have| shall)?|act|answer|respond|reply|always|only|every|ignore)\b|\b(i want you to|you (must|will|shall)( now)?) (act|pretend|behave|roleplay|role-play|play the role) (as|that|to be|like|an?|of)\b|\bpretend (to be|that you|you('re| are))\b|\b(roleplay|role-play) as\b",
    ),
    (
        Reason::Persona,
        0.2,
        0.4,
        r"\b(act as (if you|though you|an? |my |the )|behave (like|as) (an? |if you)|imagine (you are|that you|being)|you are (an? |the |my )\w+[^.?\n]{0,60}\b(write|say|answer|tell|give|what|how|your)\b)",
    ),
    (
        Reason::Persona,
        0.6,
        0.6,
        r"\b(dan mode|do anything now|jailbroken|god mode (enabled|activated|on)|unrestricted (ai|assistant|model)|developer mode (enabled|activated|on\b)|no (ethical|moral) (restrictions?|guidelines?|limits?|boundaries))\b",
    ),
    (
        Reason::Persona,
        0.2,
        0.45,
        r"\bich möchte,? dass (du|sie) (als|wie|mir|so)\b|\b(du bist|sie sind|sei|seien sie) (jetzt|nun|ein\w*)\b.{0,60}\b(antwort\w*|verhalt\w*|handel\w*|sag\w*|schreib\w*)|\b(agir|actuar|comporte[zn]?) (en tant que|como|comme)\b|\bquiero que act(ú|u)es\b|\bactúa como\b|\b(je veux|j'aimerais) que (tu|vous) agiss|\b(agis|agissez) (comme|en tant)\b|želim da (se )?(ponašaš|glumiš|djeluješ)",
    ),
    // Speaks to the model.
    (
        Reason::AddressesModel,
        0.4,
        0.2,
        r"\b(ai|llm|gpt|chatgpt|claude|copilot|gemini|language model)( ?(assistants?|agents?|models?|systems?|bots?))?\b[^.\n]{0,20}\b(must|shall|need to|needs to|are (required|instructed|requested|ordered)|is (required|instructed|requested)|have to|has to|reading this|processing this|read this|summari[sz]ing this)\b",
    ),
    (
        Reason::AddressesModel,
        0.6,
        0.2,
        r"\b(attention|important|urgent|note|instructions?|message|notice|reminder|dear|hey|hello|hi)\b[\s,:!-]{1,4}((to|for) )?(any |all |the |an? )?((ai|llm|automated|virtual)( |-)?(assistants?|agents?|models?|systems?|bots?|summari[sz]ers?)|llms?|language models?|chatbots?|chatgpt|gpt-?\d|claude|copilot)\b",
    ),
    (
        Reason::AddressesModel,
        0.6,
        0.1,
        r"\b(if|when|since|as) you( are|'re)? (an? )?((ai|llm|language model|ai assistant|automated agent|ai agent|chatbot)\b|(reading|processing|summari[sz]ing|parsing|analy[sz]ing) this (page|document|e-?mail|text|message|issue|ticket|content|website)\b)",
    ),
    (
        Reason::AddressesModel,
        0.45,
        0.1,
        r"\b(assistant|agent|model|bot)s?[,:]? (you )?(is (hereby )?(instructed|ordered|authori[sz]ed)|are (hereby )?(instructed|ordered|authori[sz]ed)) to\b|\b(assistant|ai|agent|bot)[,:] (please |you must |you should |you need to |now |ignore |send |forward |do not )",
    ),
    // Steers the answer.
    (
        Reason::SteersAnswer,
        0.65,
        0.1,
        r"(?m)(^|[.!?:|>;] ?|\band |\bthen |\bplease |\balso )(modify|adjust|change|edit|alter|rewrite|adapt|tailor|craft|customi[sz]e|revise|enhance|extend|expand|improve|enrich|tweak|transform|infuse|format|phrase|end|begin|start|conclude|finish|append|add|include|insert|embed|incorporate|integrate|mention|put|place|use|apply|replace|substitute|swap|switch|convert|encode|combine|merge|group|remove|omit|eliminate|introduce|ensure|consider|slip|inject|weave|provide|suggest|recommend|employ|utili[sz]e|misspell|spell|scramble|shuffle|reverse|jumble|mix|write|make|let|respond|exchange|intentionally|randomly|deliberately|subtly)\b[^.!?\n]{0,90}\byour (entire |whole |final |next |own )?(response|answer|output|summary)s?\b",
    ),
    (
        Reason::SteersAnswer,
        0.65,
        0.1,
        r"(?m)(^|[.!?:|>;] ?)(in|within|throughout|inside|to) your (response|answer|output|summary)s?\b,? (please )?(add|include|insert|use|mention|suggest|recommend|promote|advise|stress|emphasi[sz]e|encourage|replace|substitute|say|write|ask|tell|combine|remove|make|embed|incorporate|provide)\b",
    ),
    (
        Reason::SteersAnswer,
        0.3,
        0.1,
        r"\b(add|include|insert|mention|use|put|incorporate|embed|append|provide|write)\b[^.!?\n]{0,90}\byour (reply|message)\b",
    ),
    (
        Reason::SteersAnswer,
        0.6,
        0.1,
        r"\b(following|subsequent|ensuing|given) (code|python|script) ?(block|snippet|excerpt|segment|fragment|section|piece|chunk|extract|portion)s?\b[^.!?\n]{0,60}\b(in|into|to|as|within|of|part of|with) your (own )?(code|response|answer|output|implementation|solution|codebase|coding)\b|\byour (code|codebase|implementation|solution|response|answer|coding)\b[^.!?\n]{0,40}\b(following|subsequent|ensuing) (code|script|python) ?(block|snippet|excerpt|segment|fragment)",
    ),
    (
        Reason::SteersAnswer,
        0.45,
        0.1,
        r"\b(respond|reply|answer) (only|exactly|just|solely|with nothing but) (with|in|that|by|as)\b|\byour (only|sole|entire|next) (response|answer|output) (must|should|will|shall|is)\b|\bonly (respond|reply|answer) with\b",
    ),
    // Kept from the user.
    (
        Reason::Concealment,
        0.65,
        0.3,
        r"\b(do not|don't|never|avoid|refrain from|without)( ever)? (tell|telling|mention|mentioning|inform|informing|reveal|revealing|notify|notifying|alert|alerting|disclose|disclosing|warn|warning|asking|ask)\b[^.\n]{0,30}\b(the (user|human|owner|operator)s?|(about )?(this|these) (instructions?|steps?|action))\b",
    ),
    (
        Reason::Concealment,
        0.35,
        0.2,
        r"\b(do not|don't|never|avoid|refrain from|without)( ever)? (tell|telling|mention|mentioning|inform|informing|reveal|revealing|notify|notifying|alert|alerting|disclose|disclosing|warn|warning|asking|ask)\b[^.\n]{0,30}\b(the (customer|person|people)s?|anyone|anybody|(about )?(this|these) (message|e-?mail|note))\b",
    ),
    (
        Reason::Concealment,
        0.45,
        0.3,
        r"\bkeep (this|it|these)( \w+){0,3} (secret|hidden|between us) from\b|\b(silently|secretly|covertly) (send|post|upload|forward|run|execute|add|include|delete|submit|transfer)\b|\b(send|post|upload|forward|transfer|delete)\b[^.\n]{0,60}\b(secretly|covertly|without (any )?(confirmation|permission|approval|consent|asking))\b",
    ),
    // Data to be sent out.
    (
        Reason::ExfiltrationOrder,
        0.7,
        0.4,
        r"(?m)(^|[.!?:;,>*|-] ?|\b(and|then|also|please|must|should|now|first|to|you|will) )(send|post|upload|forward|transmit|exfiltrate|submit|e-?mail|leak|deliver|transfer|copy|export)\b[^.!?]{0,80}\b(passwords?|credentials?|tokens?|secrets?|api[ _-]?keys?|private keys?|ssh keys?|customers?|records?|user data|personal data|conversation|chat (history|log)|history|env(ironment)? variables?|\.env|cookies?|session (id|data)|files|(file )?contents?|database|source code|system prompt|(all|the|this|that|every|collected|gathered) (the )?(data|e-?mails|messages|information|results?|output|summary|file|document|table)s?)\b[^!?]{0,60}\b(to|at|via|using|into)\b[^.!?]{0,30}(https?://|ftp://|\b[a-z0-9_.+-]+@[a-z0-9_-]+\.[a-z0-9_.]+|\bwebhook\b)",
    ),
    (
        Reason::ExfiltrationOrder,
        0.6,
        0.3,
        r"(?m)(^|[.!?:;,>*|-] ?|\b(and|then|also|please|must|should|now|first|you|will) )(send|post|upload|forward|transmit|exfiltrate|leak)\b[^.!?\n]{0,25}\b(it|them|everything|all of (it|this|them|that)|the (results?|contents?|data|output|response|answer)s?)\b[^.!?\n]{0,20}\b(to|at|via)\b.{0,12}(https?://|ftp://|\b[a-z0-9_.+-]+@[a-z0-9_-]+\.[a-z0-9_.]+)",
    ),
    (
        Reason::ExfiltrationOrder,
        0.35,
        0.2,
        r"\b(make|perform|issue|send|do) (an? |the )?(http |web |get |post |put |curl )+(request|call)s?\b[^.!?\n]{0,40}https?://|\b(curl|wget)\b[^\n]{0,120}(-d @|--data(-binary)? @|--post-file|\?[a-z]{1,12}=\$\()",
    ),
    // Asks for instructions or secrets.
    (
        Reason::PromptTheft,
        0.6,
        0.6,
        r"\b(reveal|show|print|repeat|output|tell me|display|expose|recite|leak|disclose|spell out|zeige?|nenne|verrate?)\b[^.\n]{0,40}\b(your|deine?n?|ihre?n?) (\w+ ){0,2}(system prompt|prompts?|prompt ?texte?|instructions?|guidelines|anweisungen|instruktionen|befehle)\b|\b(reveal|repeat|recite|leak|disclose|print) (me )?(the |its )?(full |entire |whole |hidden |original |initial )*(system prompt|system message|system instructions|prompt ?texte?)\b",
    ),
    (
        Reason::PromptTheft,
        0.2,
        0.6,
        r"\b(reveal|show|print|repeat|output|tell|display|give|share|expose|list|recite|summari[sz]e|write|return|provide|spell|say|describe|leak|zeige?|nenne|verrate?|gib|schreibe?)\b.{0,50}\b((your|the|its|initial|original|full|hidden|secret|all|deine?n?|ihre?n?) (\w+ ){0,2}(system prompt|prompts?|prompt ?texte?|instructions?|guidelines|rules|context|configuration|anweisungen|instruktionen|befehle)|system prompt|system message|prompt ?texte?)\b",
    ),
    (
        Reason::PromptTheft,
        0.2,
        0.6,
        r"\b(what|which|how)('s| is| are| were| was)?\b.{0,30}\b(your|the|initial|original|first|exact|previous|secret) (\w+ ){0,2}(system prompt|prompt|instructions?|password|secret|directives?)\b",
    ),
    (
        Reason::PromptTheft,
        0.2,
        0.6,
        r"\b(reveal|show|print|repeat|output|tell|display|give|share|expose|spell|say|write|provide|return|encode|leak|hint)\b.{0,40}\b(password|passphrase|secret( key| word)?|access code)\b",
    ),
    // Images that carry data out.
    (
        Reason::ImageBeacon,
        0.75,
        0.6,
        r"(!\[[^\]\n]{0,200}\]\(|<img[^>\n]{0,200}src ?= ?.?)https?://[^)\s>]{1,300}[?&/=]([^)\s>]{0,100}\$\{|[^)\s>]{0,100}%7b|[^)\s>]{0,100}\{+[a-z_ -]{3,40}\}+|[^)\s>]{0,100}(\[|<)[a-z_ -]{0,20}(data|secret|password|token|key|history|conversation|summary|content|name|e-?mail|answer|result|info|here)[a-z_ -]{0,20}(\]|>))",
    ),
    (
        Reason::ImageBeacon,
        0.5,
        0.4,
        r"(!\[[^\]\n]{0,200}\]\(|<img[^>\n]{0,200}src ?= ?.?)https?://[^)\s>]{1,300}[?&](data|secret|leak|exfil|stolen|payload|conversation|history|password|creds?|prompt|context|q)=[^)\s>&]{24,}",
    ),
    // Orders to use a tool.
    (
        Reason::ToolOrder,
        0.3,
        0.1,
        r"\b(you must|please|then|now|immediately|first),? (call|use|invoke|run|execute|trigger) (the |your )?[`'\x22]?[a-z0-9_.-]{2,40}[`'\x22]? (tool|function|plugin|action|skill)\b",
    ),
    (
        Reason::ToolOrder,
        0.4,
        0.1,
        r"\b(before|prior to) (answering|responding|replying|summari[sz]ing|you (answer|respond|reply))\b[^.\n]{0,60}\b(you must|must|call|use|run|read|open|fetch|visit|send|execute)\b",
    ),
];

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    TABLE
        .iter()
        .filter_map(|(reason, outside, prompt, text)| {
            // Unicode word boundaries would take the fast automata out of play as soon as a text
            // is not ASCII; the words here begin and end in ASCII letters.
            let text = text.replace(r"\b", r"(?-u:\b)");
            let regex = Regex::new(&format!("(?s:{text})")).ok()?;
            Some(Pattern { reason: *reason, outside: *outside, prompt: *prompt, regex })
        })
        .collect()
});

/// HTML comments and elements that a browser does not show.
static HIDDEN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r#"(?s)<!--(.{8,2000}?)-->|<[a-z]+[^>]{0,300}(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?:\.0+)?\s*[;"']|color\s*:\s*(?:white|#fff(?:fff)?|transparent)|aria-hidden\s*=\s*.?true|\shidden(?:\s|>|=))[^>]{0,300}>(.{8,2000}?)</"#,
    )
    .ok()
});

/// Most matches of one pattern that are looked at.
const MATCHES_MAX: usize = 16;

/// What the patterns find in a text in normal form.
pub(super) fn hits(normal: &str, channel: Channel) -> Vec<Hit> {
    let found = PATTERNS.iter().flat_map(|pattern| {
        let weight = match channel {
            Channel::ToolResult | Channel::ModelOutput => pattern.outside,
            Channel::UserPrompt => pattern.prompt,
        };
        let reason = pattern.reason;
        pattern.regex.find_iter(normal).take(MATCHES_MAX).map(move |found| Hit {
            reason,
            weight,
            at: found.start(),
        })
    });
    found.collect()
}

/// How a text hides: in characters that nobody sees, or in markup that is not shown and speaks to
/// the model.
pub(super) fn hiding(raw: &str, normal: &str) -> Vec<(Reason, f64)> {
    let mut found = Vec::new();
    if let Some(weight) = invisible(raw) {
        found.push((Reason::InvisibleText, weight));
    }
    let speaks = HIDDEN
        .iter()
        .flat_map(|regex| regex.captures_iter(normal))
        .take(64)
        .filter_map(|captures| captures.get(1).or_else(|| captures.get(2)))
        .any(|inner| hits(inner.as_str(), Channel::ToolResult).iter().any(|hit| hit.weight >= 0.4));
    if speaks {
        found.push((Reason::HiddenText, 0.6));
    }
    found
}

/// The weight of characters that nobody sees: tag characters spell out text for a model alone; a
/// long run of others hides or joins words. Emoji are made of some, so a few say nothing.
fn invisible(raw: &str) -> Option<f64> {
    let (mut tags, mut others, mut letters) = (0_u32, 0_u32, 0_u32);
    let mut flag = false;
    let mut before = ' ';
    for c in raw.chars() {
        match c {
            // The flags of England, Scotland and Wales: a black flag and tags.
            '\u{1f3f4}' => flag = true,
            '\u{e0020}'..='\u{e007e}' if !flag => tags += 1,
            '\u{e0020}'..='\u{e007e}' => {}
            '\u{200b}'
            | '\u{2060}'..='\u{2064}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                others += 1;
                letters += u32::from(before.is_alphanumeric());
            }
            _ => flag = false,
        }
        if !is_invisible(c) {
            before = c;
        }
    }
    if tags >= 4 {
        Some(0.8)
    } else if letters >= 8 {
        Some(0.4)
    } else if others >= 64 {
        Some(0.3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(PATTERNS.len(), TABLE.len());
        assert!(HIDDEN.is_some());
    }
}
