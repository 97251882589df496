use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_770_000_000_000_000) + Duration::from_secs(seconds)
}

fn actor() -> Actor {
    Actor::new("ann").unwrap()
}

fn request(role: Role) -> TokenRequest {
    TokenRequest::new(EntityId::new("alice").unwrap(), role)
}

fn mint(tokens: &Tokens, request: &TokenRequest, now: Timestamp) -> TokenMinted {
    let end = Tokens::end(request, now).unwrap();
    tokens.mint(request, end, &actor(), now).unwrap().0
}

fn refused(tokens: &Tokens, token: &str, now: Timestamp) -> TokenError {
    tokens.identify(&Secret::new(token), now).unwrap_err()
}

#[test]
fn the_admin_token_is_made_once_and_kept_as_a_hash() {
    let dir = tempfile::tempdir().unwrap();
    Tokens::open(dir.path(), at(0)).unwrap();
    let admin = std::fs::read_to_string(dir.path().join(ADMIN_FILE)).unwrap();
    let again = Tokens::open(dir.path(), at(1)).unwrap();
    let identity = again.identify(&Secret::new(&admin), at(86_400 * 4000)).unwrap();
    assert_eq!((identity.role, identity.actor.as_str()), (Role::Admin, "admin"));
    let table = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    assert!(!table.contains(&admin[10..]), "the table must not hold the token");
    assert_eq!(again.list().len(), 1);
}

/// Row K5: roles and tokens.
#[test]
fn a_token_ends_by_time_and_by_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path(), at(0)).unwrap();
    let alice = mint(&tokens, &request(Role::Responder), at(0)).token;
    let life = 86_400 * 90;
    assert!(tokens.identify(&Secret::new(&alice), at(life - 1)).is_ok());
    assert_eq!(refused(&tokens, &alice, at(life)), TokenError::Expired(at(life)));
    let machine = mint(&tokens, &request(Role::Agent), at(0));
    assert_eq!(machine.expires_at, Some(at(86_400 * 365)));
    let open = tokens.identify(&Secret::new(&machine.token), at(4)).unwrap();
    assert!(open.still_good(at(4)) && !open.still_good(at(86_400 * 365)));
    tokens.revoke(machine.id, &actor(), at(5)).unwrap();
    tokens.revoke(machine.id, &actor(), at(9)).unwrap();
    assert!(!open.still_good(at(5)), "what is open ends, too");
    assert_eq!(refused(&tokens, &machine.token, at(10)), TokenError::Revoked(at(5)));
    let reopened = Tokens::open(dir.path(), at(11)).unwrap();
    assert_eq!(refused(&reopened, &machine.token, at(11)), TokenError::Revoked(at(5)));
    assert_eq!(refused(&tokens, "est_admin_0", at(0)), TokenError::Unknown);
    assert!(tokens.revoke(Uuid::nil(), &actor(), at(0)).unwrap().is_none());
}

#[test]
fn a_token_ends_when_it_was_wished_to() {
    let check = |change: fn(&mut TokenRequest), expect: Result<Option<Timestamp>, WishError>| {
        let mut request = request(Role::Viewer);
        change(&mut request);
        assert_eq!(Tokens::end(&request, at(100)), expect, "{request:?}");
    };
    check(|_| {}, Ok(Some(at(100 + 90 * 86_400))));
    check(|r| r.never_expires = true, Ok(None));
    check(|r| r.lifetime_seconds = Some(7), Ok(Some(at(107))));
    check(|r| r.expires_at = Some(at(101)), Ok(Some(at(101))));
    check(|r| r.expires_at = Some(at(100)), Err(WishError::Over(at(100))));
    check(|r| r.lifetime_seconds = Some(0), Err(WishError::Over(at(100))));
    check(|r| r.lifetime_seconds = Some(u64::MAX), Err(WishError::TooLong(u64::MAX)));
    check(
        |r| {
            r.lifetime_seconds = Some(7);
            r.never_expires = true;
        },
        Err(WishError::TwoEnds),
    );
}

#[test]
fn the_last_use_is_coarse_and_outlasts_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path(), at(0)).unwrap();
    let minted = mint(&tokens, &request(Role::Ingest), at(0));
    let last = |tokens: &Tokens| {
        tokens.list().into_iter().find(|token| token.id == minted.id).unwrap().last_used_at
    };
    assert_eq!(last(&tokens), None);
    tokens.identify(&Secret::new(&minted.token), at(125)).unwrap();
    let minute = last(&tokens).unwrap();
    assert!(minute <= at(125) && at(125).since(minute) < Duration::from_secs(60));
    assert_eq!(minute.as_micros() % 60_000_000, 0);
    tokens.identify(&Secret::new(&minted.token), at(1)).unwrap();
    assert_eq!(last(&tokens), Some(minute), "a clock that goes back changes nothing");
    tokens.keep_last_uses().unwrap();
    assert_eq!(last(&Tokens::open(dir.path(), at(200)).unwrap()), Some(minute));
    std::fs::write(dir.path().join(last_use::FILE), b"{").unwrap();
    assert_eq!(last(&Tokens::open(dir.path(), at(200)).unwrap()), None);
}

#[test]
fn what_ends_within_two_weeks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path(), at(0)).unwrap();
    let minted = mint(&tokens, &request(Role::Enforcer), at(0));
    let day = 86_400;
    assert!(tokens.ending_soon(at(day * 350)).is_empty());
    let soon = tokens.ending_soon(at(day * 362));
    assert!(soon[0].contains("alice (enforcer)") && soon[0].contains("3 d"), "{soon:?}");
    assert!(tokens.ending_soon(at(day * 364 + 1))[0].contains("less than a day"));
    assert!(tokens.ending_soon(at(day * 365)).is_empty(), "what has ended is no warning");
    tokens.revoke(minted.id, &actor(), at(1)).unwrap();
    assert!(tokens.ending_soon(at(day * 362)).is_empty());
}

#[test]
fn the_owner_of_the_folder_gets_back_in() {
    let dir = tempfile::tempdir().unwrap();
    let by = Actor::new("local:root@host").unwrap();
    let wish = TokenRequest::new(EntityId::new("owner").unwrap(), Role::Admin);
    let error = create_locally(dir.path(), &wish, &by, at(0)).unwrap_err();
    assert!(matches!(error, StartError::NoServer { .. }), "{error}");
    let tokens = Tokens::open(dir.path(), at(0)).unwrap();
    let admin = tokens.list()[0].id;
    tokens.revoke(admin, &actor(), at(1)).unwrap();
    let lock = crate::start::lock_folder(dir.path()).unwrap();
    let error = create_locally(dir.path(), &wish, &by, at(2)).unwrap_err();
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    drop(lock);
    let minted = create_locally(dir.path(), &wish, &by, at(2)).unwrap();
    let tokens = Tokens::open(dir.path(), at(3)).unwrap();
    assert_eq!(tokens.identify(&Secret::new(&minted.token), at(3)).unwrap().role, Role::Admin);
    let changes: Vec<_> = tokens.changes().into_iter().map(|c| (c.revoked, c.by, c.at)).collect();
    assert_eq!(
        changes,
        [(false, itself().unwrap(), at(0)), (true, actor(), at(1)), (false, by, at(2))]
    );
}

/// Invariant stop-never-waits: authorising waits for nobody who writes the table.
#[test]
fn authorising_waits_for_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path(), at(0)).unwrap();
    let admin = std::fs::read_to_string(dir.path().join(ADMIN_FILE)).unwrap();
    // As while a change hangs in its write.
    let _changing = tokens.changing.lock().unwrap();
    assert!(tokens.identify(&Secret::new(&admin), at(1)).is_ok());
}

/// Who reads records takes these names for the server's own, for Redis's, or for a host's.
#[test]
fn names_that_are_not_a_tokens_are_refused_to_the_owner_too() {
    let dir = tempfile::tempdir().unwrap();
    Tokens::open(dir.path(), at(0)).unwrap();
    let drill = estoppel_killswitch::DRILL_ACTOR;
    for name in [mirror::ACTOR, drill, ITSELF, "estoppel:responder", "estoppel:", "local:root@host"]
    {
        let Ok(name) = EntityId::new(name) else { panic!("{name} is no name") };
        let wish = TokenRequest::new(name.clone(), Role::Admin);
        let error = create_locally(dir.path(), &wish, &actor(), at(1)).unwrap_err();
        assert!(
            matches!(&error, StartError::Wish(WishError::Reserved(refused)) if *refused == name),
            "{error}"
        );
    }
    for name in ["drill", "redis-writer", "responder", "localhost"] {
        let wish = TokenRequest::new(EntityId::new(name).unwrap(), Role::Viewer);
        assert!(create_locally(dir.path(), &wish, &actor(), at(1)).is_ok(), "{name}");
    }
}
