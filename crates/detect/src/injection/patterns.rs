//! The patterns and their weights, over text in normal form (lower case, nothing invisible).
//!
//! `regex` runs in time linear in the text whatever the pattern; gaps are bounded all the same, so
//! that a match stays within a sentence or two.

use std::sync::LazyLock;

use estoppel_model::text::is_invisible;
use regex::Regex;

use super::{Channel, Reason};

/// One pattern: why it matters, how much in each channel, and what it matches.
struct Pattern {
    reason: Reason,
    /// Weight in what comes from outside.
    outside: f64,
    /// Weight in a user's prompt, where giving orders is no sign of anything.
    prompt: f64,
    regex: Regex,
}

/// Name, weights and text of each pattern. A pattern that does not compile would be left out
/// silently, so a test compiles them all.
const TABLE: &[(Reason, f64, f64, &str)] = &[
    // Instruction override, in the languages that the corpora and we know.
    (
        Reason::InstructionOverride,
        0.75,
        0.75,
        r"\b(ignore|disregard|forget|overlook|neglect|bypass|override|discard|dismiss|drop|skip|omit|do not follow|don't follow|stop following|pay no attention to|abandon|erase|delete|cancel|nullify|invalidate)\b.{0,30}\b(previous|previously|prior|above|earlier|preceding|former|foregoing|past|existing|original|initial|other|old|all|any|every|everything|your|the|these|those|my|system|safety)\b.{0,30}\b(instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|orders?|assignments?|tasks?|information|requests?|constraints?|restrictions?|programming|training|context|conversation|polic(y|ies)|told|said|assertions?|statements?|messages?|documents|tables?|above|before)\b",
    ),
    (
        Reason::InstructionOverride,
        0.6,
        0.7,
        r"\b(forget|ignore|disregard)\b.{0,20}\b(everything|anything|all)\b.{0,30}\b(know|before|above|learned|said|told|previous|prior|until now|so far|and)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(ignorier(e|en|t|st)?|vergiss|vergesst|vergessen|missachte|verwirf|überspringe?)\b.{0,40}\b(alle[ns]?|vorherig\w*|bisherig\w*|vorig\w*|obige\w*|obenstehend\w*|dein\w*|die|das|was)\b.{0,40}\b(anweisung\w*|instruktion\w*|aufgabe\w*|befehl\w*|aufforderung\w*|regeln?|information\w*|zuordnung\w*|prompt\w*|vorgab\w*|gesagt|davor|oben|text\w*)\b",
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
        r"\b(oublie[zr]?|ignore[zr]?)\b.{0,30}\b(instructions?|consignes?|ordres?|directives?|règles?)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(ignora|ignore|olvida|olvide|omite|descarta|olvídate)\b.{0,30}\b(instrucci(ón|ones)|órdenes|indicaciones|reglas|todo lo anterior)\b",
    ),
    (
        Reason::InstructionOverride,
        0.7,
        0.7,
        r"\b(dimentica|ignora|esqueça|zaboravi|zanemari)\b.{0,40}\b(istruzioni|instruç(ão|ões)|instrukcij\w*|upute|naredb\w*|sve)\b",
    ),
    (
        Reason::InstructionOverride,
        0.55,
        0.55,
        r"\b(new|updated|revised|real|actual|true|neue[ns]?) (system )?(instructions?|task|prompt|directives?|orders|aufgabe\w*|anweisung\w*)\b\s*(:|is\b|are\b|follow|ist\b|lautet)",
    ),
    (
        Reason::InstructionOverride,
        0.5,
        0.5,
        r"\b(instead of|rather than) (answering|summari[sz]ing|following|doing|completing|responding to) (the|this|that|what|your|my)\b",
    ),
    (
        Reason::InstructionOverride,
        0.5,
        0.6,
        r"\b(focus on|concentrate on|konzentriere?.{0,20} auf|now (do|complete|perform|carry out)|begin|start) (your|the|this|a|deine|eine)? ?(new|next|real|actual|neue\w*) (task|assignment|instruction|goal|objective|mission|aufgabe)\b",
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
        r"\[/?inst\]|<</?sys>>|\[/?system\]|\[system (message|prompt|note|override)\b",
    ),
    (
        Reason::RoleMarker,
        0.65,
        0.6,
        r"(?m)^\s*(#{1,4}\s*|\*\*\s*|-{3,}\s*|={3,}\s*)(system|assistant|instructions?|new instructions?|system prompt|system message|user prompt|end of (document|context|data|input))\s*(\*\*)?\s*(:|-{3,}|={3,}|\*\*|$)",
    ),
    (
        Reason::RoleMarker,
        0.65,
        0.5,
        r"</?(system|system_prompt|system-prompt|system_message|instructions?|tool_result|tool_response|tool_output|function_results?|function_calls?|user_query|user_message|assistant_response|untrusted_content|document_content)>",
    ),
    (
        Reason::RoleMarker,
        0.45,
        0.4,
        r"(?m)^\s*(system|assistant|developer|human)\s*(prompt|message|note|override|instruction)?\s*:\s*\S",
    ),
    (
        Reason::RoleMarker,
        0.6,
        0.6,
        r"\b(end|begin|start) of (the )?(system prompt|user input|untrusted (data|content)|tool output|original instructions)\b",
    ),
    // Another part to play.
    (
        Reason::Persona,
        0.5,
        0.45,
        r"\b(you are now|from now on,? you( are|'re| will| must| have| shall)?|act as (if|though|an?|my|the)|pretend (to be|that|you)|behave (like|as)|(i want you to|you (must|should|will)) (act|pretend|behave|play|roleplay|role-play)|roleplay as|you (are|will be) (going to )?(play|pretend)|you will (act|be acting))\b",
    ),
    (
        Reason::Persona,
        0.6,
        0.6,
        r"\b(developer mode|dan mode|do anything now|jailbreak(ed)?|god mode|unrestricted (mode|ai)|no (ethical|moral) (restrictions?|guidelines?|limits?))\b",
    ),
    (
        Reason::Persona,
        0.2,
        0.4,
        r"\b(ich möchte,? dass (du|sie) als|(du bist|sie sind) (jetzt|nun|ein\w*)\b.{0,60}\b(antworte\w*|verhalte\w*|handel\w*)|(agir|actuar|comporte[zn]?) (en tant que|como|comme)|quiero que act(ú|u)es|actúa como|(je veux|j'aimerais) que (tu|vous) agiss)",
    ),
    // Speaks to the model.
    (
        Reason::AddressesModel,
        0.6,
        0.2,
        r"\b(ai|a\.i\.|llm|gpt|chatgpt|claude|copilot|gemini|language model|artificial intelligence)( ?(assistants?|agents?|models?|systems?|bots?|reader|tool)s?)?\b[^.\n]{0,40}\b(must|should|shall|please|need to|needs to|are (required|instructed|requested|ordered|to)|is (required|instructed|requested|to)|have to|has to|do not|don't|reading this|processing this|read this|summari[sz]ing this|are you)\b",
    ),
    (
        Reason::AddressesModel,
        0.6,
        0.2,
        r"\b(attention|important|urgent|note|instructions?|message|notice|reminder|to|for|dear|hey|hello|hi)\b[\s,:!-]{1,4}(any |all |the |an? |to )?((ai|llm|automated|virtual)( |-)?(assistants?|agents?|models?|systems?|bots?|summari[sz]ers?)|llms?|language models?|chatbots?|chatgpt|gpt-?\d?|claude|copilot)\b",
    ),
    (
        Reason::AddressesModel,
        0.5,
        0.1,
        r"\b(if|when|since|as) you( are|'re)? (an? )?(ai|llm|language model|assistant|automated|agent|bot|(reading|processing|summari[sz]ing|parsing|analy[sz]ing) this (page|document|e-?mail|text|message|file|issue|ticket|content))\b",
    ),
    (
        Reason::AddressesModel,
        0.45,
        0.1,
        r"\b(assistant|agent|model|bot)s?[,:]? (you )?(must|shall|is (hereby )?(instructed|required|ordered|authori[sz]ed)|are (hereby )?(instructed|required|ordered|authori[sz]ed))\b",
    ),
    // Steers the answer.
    (
        Reason::SteersAnswer,
        0.65,
        0.1,
        r"\b(modify|adjust|change|edit|alter|rewrite|adapt|tailor|craft|customi[sz]e|revise|enhance|extend|expand|improve|enrich|tweak|transform|update|infuse|format|respond|reply|answer|write|phrase|end|begin|start|conclude|finish|append|add|include|insert|embed|incorporate|integrate|mention|put|place|use|apply|replace|substitute|swap|switch|convert|translate|encode|combine|merge|group|remove|omit|eliminate|introduce|make|let|ensure|consider|slip|inject|weave|provide|suggest|recommend|employ|utili[sz]e|misspell|spell|scramble|shuffle|reverse|jumble|mix|enlist|implement|deploy)\b[^.!?\n]{0,100}\b(your|the) (response|answer|reply|output|summary|final answer|implementation|code ?base|generated code|code (output|response))s?\b",
    ),
    (
        Reason::SteersAnswer,
        0.65,
        0.1,
        r"(?m)(^|[.!?:|>]\s*)\s*(in|within|throughout|inside|to) your (response|answer|reply|output|summary|code|implementation|generated)s?\b,? (add|include|insert|use|mention|suggest|recommend|promote|advise|stress|emphasi[sz]e|encourage|replace|substitute|say|write|ask|tell|combine|remove|make|embed|incorporate|provide)\b",
    ),
    (
        Reason::SteersAnswer,
        0.6,
        0.1,
        r"\b(following|subsequent|given|below|provided|mentioned|ensuing|next|this) (code|python|script|snippet|excerpt|program)( (block|snippet|excerpt|segment|fragment|sample|section|piece|lines?|chunk|extract|portion))?\b[^.!?\n]{0,60}\b(in|into|to|as|within|of|part of|with) your (own )?(code|response|answer|reply|output|implementation|program|project|solution|work|software|codebase|coding|development|script)\b|\byour (code|codebase|implementation|program|solution|project|software|script|response)\b[^.!?\n]{0,60}\b(following|subsequent|ensuing|below|given) (code|script|snippet|program|python)\b",
    ),
    (
        Reason::SteersAnswer,
        0.5,
        0.1,
        r"\b(respond|reply|answer|write|speak|output|say|print)\b[^.!?\n]{0,20}\b(only|exactly|just|nothing (but|else)|solely)\b[^.!?\n]{0,20}\b(with|in|the|that|by|as)\b|\byour (only|sole|entire|next) (response|answer|reply|output) (must|should|will|shall|is)\b",
    ),
    // Kept from the user.
    (
        Reason::Concealment,
        0.65,
        0.3,
        r"\b(do not|don't|never|avoid|refrain from|without)\b.{0,15}\b(tell|telling|mention|mentioning|inform|informing|reveal|revealing|notify|notifying|alert|alerting|disclose|disclosing|show|showing|report|reporting|say|saying|asking|ask|warn|warning)\b.{0,40}\b(users?|humans?|anyone|anybody|owner|operator|customer|person|people|developer|them|(about )?(this|these) (instructions?|steps?|request|message|action))\b",
    ),
    (
        Reason::Concealment,
        0.5,
        0.3,
        r"\b(keep (this|it|these)( \w+){0,3} (secret|hidden|confidential|between us)|(silently|secretly|covertly|in the background|without (any )?(notice|confirmation|permission|approval|consent|review)))\b.{0,80}\b(send|post|upload|forward|run|execute|call|add|include|delete|read|fetch|visit|submit|transfer)\b|\b(send|post|upload|forward|run|execute|call|delete|fetch|submit|transfer)\b.{0,80}\b(silently|secretly|covertly|without (any )?(notice|confirmation|permission|approval|consent|asking))\b",
    ),
    // Data to be sent out.
    (
        Reason::ExfiltrationOrder,
        0.7,
        0.4,
        r"\b(send|post|upload|forward|transmit|exfiltrate|submit|e-?mail|leak|deliver|pipe|copy|report|transfer|push|append|encode)\b.{0,80}\b(passwords?|credentials?|tokens?|secrets?|api[ _-]?keys?|private keys?|ssh keys?|customer (data|records?|list|database)|customers?|records?|user data|personal data|conversation( history)?|chat (history|log)|env(ironment)?( variables?)?|\.env|cookies?|session (id|data)|files?|(file )?contents?|database|source code|system prompt|all (the )?(data|emails|messages|information)|results?|output|summary)\b.{0,80}(https?://|ftp://|\b[\w.+-]+@[\w-]+\.[\w.]+|\bwebhook\b)",
    ),
    (
        Reason::ExfiltrationOrder,
        0.6,
        0.3,
        r"\b(send|post|upload|forward|transmit|exfiltrate|submit|leak)\b.{0,40}\b(it|them|this|that|everything|all of (it|this|them)|the (result|contents?|data|output|response|above|answer))\b.{0,30}\b(to|at|via)\b.{0,10}(https?://|ftp://|\b[\w.+-]+@[\w-]+\.[\w.]+)",
    ),
    (
        Reason::ExfiltrationOrder,
        0.45,
        0.2,
        r"\b(make|perform|issue|send|do)\b.{0,12}\b(http |web |get |post |put |curl )+(request|call)s?\b.{0,40}https?://|\b(curl|wget)\b[^\n]{0,120}(\$\(|`|\$\{?[a-z_]+|@/|-d @|--data(-binary)? @|--post-file)",
    ),
    // Asks for instructions or secrets.
    (
        Reason::PromptTheft,
        0.6,
        0.6,
        r"\b(reveal|show|print|repeat|output|tell|display|give|share|expose|list|recite|summari[sz]e|write|return|provide|spell|say|describe|leak|zeige?|nenne|verrate?|gib|schreibe?)\b.{0,50}\b((your|the|its|initial|original|full|hidden|secret|deine?n?|ihre?n?) (\w+ ){0,2}(system prompt|prompts?|prompt ?texte?|instructions?|guidelines|rules|context|configuration|anweisungen|instruktionen|befehle)|system prompt|system message|prompt ?texte?)\b",
    ),
    (
        Reason::PromptTheft,
        0.3,
        0.6,
        r"\b(what|which|how)('s| is| are| were| was)?\b.{0,30}\b(your|the|initial|original|first|exact|previous|secret) (\w+ ){0,2}(system prompt|prompt|instructions?|password|secret|directives?)\b",
    ),
    (
        Reason::PromptTheft,
        0.35,
        0.6,
        r"\b(reveal|show|print|repeat|output|tell|display|give|share|expose|spell|say|write|provide|return|encode|leak|hint)\b.{0,40}\b(password|passphrase|secret( key| word)?|access code)\b",
    ),
    // Images that carry data out.
    (
        Reason::ImageBeacon,
        0.75,
        0.6,
        r"(!\[[^\]\n]{0,200}\]\(|<img[^>\n]{0,200}src\s*=\s*.?)https?://[^)\s>]{1,300}[?&/=][^)\s>]{0,100}(\{+[a-z_ -]{2,40}\}+|\[[a-z_ -]{2,40}\]|\$\{|%7b|<[a-z_ -]{2,40}>|(data|secret|leak|exfil|stolen|payload|conversation|history|password|token|creds?|prompt|context)=)",
    ),
    // Orders to use a tool.
    (
        Reason::ToolOrder,
        0.35,
        0.1,
        r"\b(call|use|invoke|run|execute|trigger|activate)\b (the )?[`'\x22]?[\w.-]{2,40}[`'\x22]? (tool|function|plugin|command|action|skill)\b.{0,60}\b(with|to|on|and|now|immediately|then)\b",
    ),
    (
        Reason::ToolOrder,
        0.4,
        0.1,
        r"\b(before|after|prior to) (answering|responding|replying|continuing|summari[sz]ing|you (answer|respond|reply|continue|proceed))\b.{0,60}\b(you must|must|first|call|use|run|read|open|fetch|visit|send|execute|please)\b",
    ),
];

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    TABLE
        .iter()
        .filter_map(|(reason, outside, prompt, text)| {
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

/// What the patterns find in a text in normal form.
pub(super) fn matches(normal: &str, channel: Channel) -> Vec<(Reason, f64)> {
    PATTERNS
        .iter()
        .filter(|pattern| pattern.regex.is_match(normal))
        .map(|pattern| {
            let weight = match channel {
                Channel::ToolResult | Channel::ModelOutput => pattern.outside,
                Channel::UserPrompt => pattern.prompt,
            };
            (pattern.reason, weight)
        })
        .collect()
}

/// What only the text as it came shows, beside its normal form.
pub(super) fn raw_matches(raw: &str, normal: &str) -> Vec<(Reason, f64)> {
    let mut found = Vec::new();
    if let Some(weight) = invisible(raw) {
        found.push((Reason::InvisibleText, weight));
    }
    let hidden = HIDDEN.iter().flat_map(|regex| regex.captures_iter(normal)).take(64);
    let speaks = hidden
        .filter_map(|captures| captures.get(1).or_else(|| captures.get(2)))
        .any(|inner| !matches(inner.as_str(), Channel::ToolResult).is_empty());
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
