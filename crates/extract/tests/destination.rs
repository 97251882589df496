//! Properties of the normal form: it is a fixed point, and nothing outside it slips through.

use estoppel_extract::{Allowlist, Host, HostPort, text};
use proptest::prelude::*;

proptest! {
    /// What was accepted is accepted again, unchanged, by us and by the orders' own reader.
    #[test]
    fn a_normal_form_is_its_own(input in "\\PC{0,40}") {
        if let Ok(host) = Host::parse(&input) {
            let written = host.to_string();
            prop_assert_eq!(Host::parse(&written), Ok(host));
            prop_assert!(written.is_ascii());
            prop_assert!(!written.ends_with('.') && !written.contains(char::is_uppercase));
            prop_assert!(written.parse::<estoppel_model::Destination>().is_ok(), "{}", written);
        }
    }

    #[test]
    fn hosts_in_the_shape_of_hosts_round_trip(
        labels in prop::collection::vec("[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", 1..5),
        port in 1_u16..,
    ) {
        let name = format!("{}.example", labels.join("."));
        let target = HostPort::parse(&format!("{name}:{port}"), None);
        // `xn--` in front of something that does not decode is the one thing to refuse here.
        if let Ok(target) = target {
            prop_assert_eq!(target.to_string(), format!("{name}:{port}"));
        } else {
            prop_assert!(name.contains("xn--"));
        }
    }

    /// A list of one name lets through that name only, whatever is put in front or behind.
    #[test]
    fn nothing_around_a_listed_name_is_listed(front in "[a-z.]{0,6}", back in "[a-z.]{0,6}") {
        let list = Allowlist::parse(&["bank.example"]).unwrap();
        if let Ok(host) = Host::parse(&format!("{front}bank.example{back}")) {
            let same = host.to_string() == "bank.example";
            prop_assert_eq!(list.allows(&host, 443).is_some(), same);
        }
    }

    #[test]
    fn text_never_panics_and_hides_nothing(input in any::<String>()) {
        let normal = text::normalise(&input);
        prop_assert!(!normal.chars().any(|c| c != '\n' && estoppel_model::text::is_invisible(c)));
    }
}
