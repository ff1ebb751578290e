"""The ledger in the database: an append-only, balanced journal, and the function that posts a batch.

`ledger_post` takes the sorted distinct accounts and dense indexes into them. It locks the accounts in id order, keeps
the running balances in local arrays while it applies the movements in order, and then writes entries, lines and each
touched account once. So a hot account gets cheaper, not dearer. Both functions fix their plans to index lookups: a plan
is kept for as long as a worker's session lives, and one made while the tables were small would be ruinous later. tests/accounts/ledger_model.py is the same computation
in plain Python.
"""

from django.db import migrations

JOURNAL = """
CREATE TRIGGER entry_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON accounts_journalentry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER line_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON accounts_journalline
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION require_balanced_lines() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET random_page_cost = 0.01 AS $$
DECLARE
    culprit bigint;
BEGIN
    -- All lines of an entry come in one statement: an entry that already has lines cannot be added to.
    -- Scalar subqueries, not joins: each is one look into an index, whatever the planner believed when the plan was made.
    SELECT n.entry_id INTO culprit
      FROM (SELECT entry_id, count(*) AS lines,
                   sum(CASE side WHEN 'C' THEN amount_minor ELSE -amount_minor END) AS difference
              FROM new_lines GROUP BY entry_id) AS n
     WHERE n.difference <> 0 OR n.lines < 2
        OR (SELECT e.id FROM accounts_journalentry e WHERE e.id = n.entry_id) IS NULL
        OR n.lines <> (SELECT count(*) FROM accounts_journalline l WHERE l.entry_id = n.entry_id)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal entry % does not balance', culprit
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journalentry_balanced';
    END IF;
    SELECT n.entry_id INTO culprit
      FROM new_lines n
     WHERE (SELECT a.currency FROM accounts_account a WHERE a.id = n.account_id)
           IS DISTINCT FROM (SELECT e.currency FROM accounts_journalentry e WHERE e.id = n.entry_id)
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal entry % has a line in another currency or without an account', culprit
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journalentry_currency';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER lines_balance AFTER INSERT ON accounts_journalline
    REFERENCING NEW TABLE AS new_lines FOR EACH STATEMENT EXECUTE FUNCTION require_balanced_lines();

CREATE TRIGGER account_keeps_currency BEFORE UPDATE OF id, currency ON accounts_account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER account_stays BEFORE DELETE OR TRUNCATE ON accounts_account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Room on the page for new versions, so that a balance update touches no index.
ALTER TABLE accounts_account SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
"""

POST = """
CREATE FUNCTION ledger_post(
    account_ids uuid[], debits int[], credits int[], amounts bigint[], currencies text[], refs text[])
    RETURNS text[] LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET enable_bitmapscan = off SET random_page_cost = 0.01 AS $$
DECLARE
    balance bigint[]; held bigint[]; floor_minor bigint[]; line_number bigint[]; stat text[]; cur text[];
    touched boolean[]; already boolean[]; outcome text[];
    n int := coalesce(array_length(refs, 1), 0);
    posted int := 0; k int := 0; d int; c int; amount bigint; first_entry bigint;
    entry_refs text[]; entry_currencies text[]; entry_ids bigint[];
    line_entry int[]; line_account uuid[]; line_no bigint[]; line_side text[]; line_amount bigint[]; line_after bigint[];
BEGIN
    IF n = 0 THEN RETURN '{}'; END IF;
    WITH locked AS MATERIALIZED (
        SELECT id, posted_minor, held_minor, limit_minor, lines, status, currency
          FROM accounts_account WHERE id = ANY(account_ids) ORDER BY id FOR NO KEY UPDATE
    )
    SELECT array_agg(posted_minor ORDER BY id), array_agg(held_minor ORDER BY id), array_agg(-limit_minor ORDER BY id),
           array_agg(lines ORDER BY id), array_agg(status ORDER BY id), array_agg(currency ORDER BY id),
           array_agg(false)
      INTO balance, held, floor_minor, line_number, stat, cur, touched
      FROM locked;
    -- Accounts nobody knows leave a gap, and the caller's indexes would point at others: look each up, locked as it is.
    IF coalesce(array_length(balance, 1), 0) <> coalesce(array_length(account_ids, 1), 0) THEN
        SELECT array_agg(l.posted_minor ORDER BY u.i), array_agg(l.held_minor ORDER BY u.i),
               array_agg(-l.limit_minor ORDER BY u.i), array_agg(l.lines ORDER BY u.i),
               array_agg(coalesce(l.status, 'unknown') ORDER BY u.i), array_agg(l.currency ORDER BY u.i),
               array_agg(false)
          INTO balance, held, floor_minor, line_number, stat, cur, touched
          FROM unnest(account_ids) WITH ORDINALITY AS u(id, i) LEFT JOIN accounts_account l USING (id);
    END IF;
    -- After the locks: whoever posted one of these before us has committed and is seen.
    SELECT array_agg((SELECT e.id FROM accounts_journalentry e WHERE e.reference = r.reference) IS NOT NULL ORDER BY r.i)
      INTO already
      FROM unnest(refs) WITH ORDINALITY AS r(reference, i);

    outcome := array_fill(''::text, ARRAY[n]);
    FOR i IN 1..n LOOP
        d := debits[i]; c := credits[i]; amount := amounts[i];
        IF already[i] THEN outcome[i] := 'already_posted'; CONTINUE; END IF;
        IF stat[d] = 'unknown' OR stat[c] = 'unknown' THEN outcome[i] := 'account_not_found'; CONTINUE; END IF;
        IF stat[d] = 'closed' OR stat[c] = 'closed' THEN outcome[i] := 'account_closed'; CONTINUE; END IF;
        IF stat[d] = 'frozen' OR stat[c] = 'frozen' THEN outcome[i] := 'account_frozen'; CONTINUE; END IF;
        IF cur[d] <> currencies[i] OR cur[c] <> currencies[i] THEN outcome[i] := 'currency_mismatch'; CONTINUE; END IF;
        IF balance[d] - held[d] - amount < floor_minor[d] THEN outcome[i] := 'insufficient_funds'; CONTINUE; END IF;
        -- Balances stay far from the ends of a 64-bit integer.
        IF balance[c] + amount > 4000000000000000000 OR balance[d] - amount < -4000000000000000000 THEN
            outcome[i] := 'limit_exceeded'; CONTINUE;
        END IF;
        posted := posted + 1;
        entry_refs[posted] := refs[i]; entry_currencies[posted] := currencies[i];
        balance[d] := balance[d] - amount; line_number[d] := line_number[d] + 1; touched[d] := true;
        k := k + 1; line_entry[k] := posted; line_account[k] := account_ids[d]; line_no[k] := line_number[d];
        line_side[k] := 'D'; line_amount[k] := amount; line_after[k] := balance[d];
        balance[c] := balance[c] + amount; line_number[c] := line_number[c] + 1; touched[c] := true;
        k := k + 1; line_entry[k] := posted; line_account[k] := account_ids[c]; line_no[k] := line_number[c];
        line_side[k] := 'C'; line_amount[k] := amount; line_after[k] := balance[c];
    END LOOP;
    IF posted = 0 THEN RETURN outcome; END IF;

    SELECT array_agg(nextval('accounts_journalentry_id_seq')) INTO entry_ids FROM generate_series(1, posted);
    INSERT INTO accounts_journalentry (id, reference, currency, created_at)
    SELECT id, reference, currency, statement_timestamp()
      FROM unnest(entry_ids, entry_refs, entry_currencies) AS e(id, reference, currency);
    INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)
    SELECT entry_ids[entry], account, number, side, amount_minor, after
      FROM unnest(line_entry, line_account, line_no, line_side, line_amount, line_after)
           AS l(entry, account, number, side, amount_minor, after);
    UPDATE accounts_account AS a SET posted_minor = u.balance, lines = u.line_number
      FROM unnest(account_ids, balance, line_number, touched) AS u(id, balance, line_number, touched)
     WHERE u.touched AND a.id = u.id;
    RETURN outcome;
END $$;
"""

UNDO = """
DROP FUNCTION ledger_post(uuid[], int[], int[], bigint[], text[], text[]);
ALTER TABLE accounts_account RESET (fillfactor, autovacuum_vacuum_scale_factor);
DROP TRIGGER account_stays ON accounts_account;
DROP TRIGGER account_keeps_currency ON accounts_account;
DROP TRIGGER lines_balance ON accounts_journalline;
DROP FUNCTION require_balanced_lines();
DROP TRIGGER line_is_append_only ON accounts_journalline;
DROP TRIGGER entry_is_append_only ON accounts_journalentry;
"""


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial"), ("messaging", "0002_append_only_and_wake")]
    operations = [migrations.RunSQL(JOURNAL + POST, UNDO)]
