"""The same ledger for a fifth less processor time: `ledger_post`, the balance trigger and the currency's check anew.

Posting workers of earlier versions call the same function with the same arguments; what is refused stays refused, by
the same constraint names. docs/decisions/0002-posting-in-one-database-function.md has the costs.
"""

import re
from importlib import import_module

from django.db import migrations

# The currency of an account is fixed, so it is looked at when the account is opened. As a CHECK the regular expression
# ran for every balance that changed.
CURRENCY = """
CREATE FUNCTION refuse_currency() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '"%" is no currency: three capital letters', NEW.currency
        USING ERRCODE = 'check_violation', CONSTRAINT = 'account_currency';
END $$;
CREATE TRIGGER account_has_currency BEFORE INSERT ON accounts_account
    FOR EACH ROW WHEN (NEW.currency !~ '^[A-Z]{3}$') EXECUTE FUNCTION refuse_currency();
"""
CURRENCY_UNDO = """
DROP TRIGGER account_has_currency ON accounts_account;
DROP FUNCTION refuse_currency();
"""

# The entries of a statement have ids close together: a range of each index is read once, where each line was looked up.
# A statement with ids far apart is checked as well; it only reads what lies between.
BALANCE = """
CREATE OR REPLACE FUNCTION require_balanced_lines() RETURNS trigger LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_nestloop = off SET enable_mergejoin = off SET enable_hashjoin = on SET random_page_cost = 0.01 AS $$
DECLARE
    first_id bigint; last_id bigint; culprit bigint; strange boolean;
BEGIN
    SELECT min(entry_id), max(entry_id) INTO first_id, last_id FROM new_lines;
    -- All lines of an entry come in one statement: an entry that already has lines cannot be added to.
    SELECT n.entry_id INTO culprit
      FROM (SELECT entry_id, count(*) AS lines,
                   sum(CASE side WHEN 'C' THEN amount_minor ELSE -amount_minor END) AS difference
              FROM new_lines GROUP BY entry_id) AS n
      LEFT JOIN (SELECT entry_id, count(*) AS lines FROM accounts_journalline
                  WHERE entry_id BETWEEN first_id AND last_id GROUP BY entry_id) AS l USING (entry_id)
     WHERE n.difference <> 0 OR n.lines < 2 OR n.lines IS DISTINCT FROM l.lines
     LIMIT 1;
    -- One look at the accounts for each currency: as many of them must exist in it as its entries name.
    IF NOT FOUND THEN
        SELECT min(g.entry_id) FILTER (WHERE g.currency IS NULL),
               bool_or(cardinality(g.account_ids) <> (
                   SELECT count(*) FROM accounts_account a WHERE a.id = ANY (g.account_ids) AND a.currency = g.currency))
          INTO culprit, strange
          FROM (SELECT e.currency, min(n.entry_id) AS entry_id, array_agg(DISTINCT n.account_id) AS account_ids
                  FROM new_lines n
                  LEFT JOIN accounts_journalentry e ON e.id = n.entry_id AND e.id BETWEEN first_id AND last_id
                 GROUP BY e.currency) AS g;
    END IF;
    IF culprit IS NOT NULL THEN
        RAISE EXCEPTION 'journal entry % does not balance', culprit
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journalentry_balanced';
    END IF;
    IF strange THEN
        SELECT min(n.entry_id) INTO culprit
          FROM new_lines n
         WHERE (SELECT a.currency FROM accounts_account a WHERE a.id = n.account_id)
               IS DISTINCT FROM (SELECT e.currency FROM accounts_journalentry e WHERE e.id = n.entry_id);
        RAISE EXCEPTION 'journal entry % has a line in another currency or without an account', culprit
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journalentry_currency';
    END IF;
    RETURN NULL;
END $$;
"""

POST = """
CREATE OR REPLACE FUNCTION ledger_post(
    account_ids uuid[], debits int[], credits int[], amounts bigint[], currencies text[], refs text[])
    RETURNS text[] LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET enable_bitmapscan = off SET random_page_cost = 0.01 AS $$
DECLARE
    n int := coalesce(array_length(refs, 1), 0);
    locked_ids uuid[]; balance bigint[]; lowest bigint[]; line_number bigint[]; number_before bigint[];
    -- Nothing but open accounts of one currency, all known: the common case, which needs neither of the two below.
    plain boolean; stat text[]; cur text[];
    already boolean[]; outcome text[]; entry_ids bigint[]; d int; c int; amount bigint; left_over bigint;
    debit_number bigint[]; debit_after bigint[]; credit_number bigint[]; credit_after bigint[];
BEGIN
    IF n = 0 THEN RETURN '{}'; END IF;
    -- One scan fills all arrays, in the order of the ids: no aggregate has to sort for itself.
    WITH locked AS MATERIALIZED (
        SELECT id, posted_minor, held_minor - limit_minor AS lowest, lines, status, currency
          FROM accounts_account WHERE id = ANY (account_ids) ORDER BY id FOR NO KEY UPDATE
    )
    SELECT array_agg(l.id), array_agg(l.posted_minor), array_agg(l.lowest), array_agg(l.lines),
           bool_and(l.status = 'open' AND l.currency = currencies[1])
      INTO locked_ids, balance, lowest, line_number, plain
      FROM locked l;
    IF (plain AND locked_ids = account_ids AND currencies[1] = ALL (currencies)) IS NOT TRUE THEN
        -- Accounts nobody knows leave a gap, and the caller's indexes would point at others. One that has appeared since
        -- is locked here.
        plain := false;
        SELECT array_agg(l.posted_minor ORDER BY u.i), array_agg(l.held_minor - l.limit_minor ORDER BY u.i),
               array_agg(l.lines ORDER BY u.i), array_agg(coalesce(l.status, 'unknown') ORDER BY u.i),
               array_agg(l.currency ORDER BY u.i)
          INTO balance, lowest, line_number, stat, cur
          FROM unnest(account_ids) WITH ORDINALITY AS u(id, i)
          LEFT JOIN LATERAL (SELECT * FROM accounts_account a WHERE a.id = u.id FOR NO KEY UPDATE) AS l ON true;
    END IF;
    number_before := line_number;
    -- After the locks: whoever posted one of these before us has committed and is seen.
    SELECT array_agg((SELECT e.id FROM accounts_journalentry e WHERE e.reference = r.reference) IS NOT NULL ORDER BY r.i)
      INTO already
      FROM unnest(refs) WITH ORDINALITY AS r(reference, i);

    outcome := array_fill(''::text, ARRAY[n]);
    debit_number := array_fill(NULL::bigint, ARRAY[n]);
    debit_after := debit_number; credit_number := debit_number; credit_after := debit_number;
    FOR i IN 1..n LOOP
        d := debits[i]; c := credits[i]; amount := amounts[i];
        IF already[i] THEN outcome[i] := 'already_posted'; CONTINUE; END IF;
        IF NOT plain THEN
            IF stat[d] = 'unknown' OR stat[c] = 'unknown' THEN outcome[i] := 'account_not_found'; CONTINUE; END IF;
            IF stat[d] = 'closed' OR stat[c] = 'closed' THEN outcome[i] := 'account_closed'; CONTINUE; END IF;
            IF stat[d] = 'frozen' OR stat[c] = 'frozen' THEN outcome[i] := 'account_frozen'; CONTINUE; END IF;
            IF cur[d] <> currencies[i] OR cur[c] <> currencies[i] THEN outcome[i] := 'currency_mismatch'; CONTINUE; END IF;
        END IF;
        left_over := balance[d] - amount;
        IF left_over < lowest[d] THEN outcome[i] := 'insufficient_funds'; CONTINUE; END IF;
        -- Balances stay far from the ends of a 64-bit integer.
        IF balance[c] + amount > 4000000000000000000 OR left_over < -4000000000000000000 THEN
            outcome[i] := 'limit_exceeded'; CONTINUE;
        END IF;
        balance[d] := left_over; debit_after[i] := left_over;
        line_number[d] := line_number[d] + 1; debit_number[i] := line_number[d];
        balance[c] := balance[c] + amount; credit_after[i] := balance[c];
        line_number[c] := line_number[c] + 1; credit_number[i] := line_number[c];
    END LOOP;

    SELECT array_agg(CASE o.outcome WHEN '' THEN nextval('accounts_journalentry_id_seq') END ORDER BY o.i)
      INTO entry_ids
      FROM unnest(outcome) WITH ORDINALITY AS o(outcome, i);
    INSERT INTO accounts_journalentry (id, reference, currency, created_at)
    SELECT e.id, e.reference, e.currency, statement_timestamp()
      FROM unnest(entry_ids, refs, currencies) AS e(id, reference, currency)
     WHERE e.id IS NOT NULL;
    INSERT INTO accounts_journalline (entry_id, account_id, number, side, amount_minor, balance_after_minor)
    SELECT m.entry_id, account_ids[l.account], l.number, l.side, m.amount, l.after
      FROM unnest(entry_ids, amounts, debits, debit_number, debit_after, credits, credit_number, credit_after)
           AS m(entry_id, amount, debit, debit_number, debit_after, credit, credit_number, credit_after)
     CROSS JOIN LATERAL (VALUES ('D', m.debit, m.debit_number, m.debit_after),
                                ('C', m.credit, m.credit_number, m.credit_after)) AS l(side, account, number, after)
     WHERE m.entry_id IS NOT NULL;
    UPDATE accounts_account AS a SET posted_minor = u.balance, lines = u.line_number
      FROM unnest(account_ids, balance, line_number, number_before) AS u(id, balance, line_number, number_before)
     WHERE u.line_number <> u.number_before AND a.id = u.id;
    RETURN outcome;
END $$;
"""

_before = import_module("accounts.migrations.0002_ledger")
_functions = re.findall(r"CREATE FUNCTION .*?END \$\$;", _before.JOURNAL + _before.POST, re.DOTALL)
UNDO = CURRENCY_UNDO + "".join(f.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1) for f in _functions)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_incremental_proof")]
    operations = [
        migrations.RunSQL(CURRENCY + BALANCE + POST, UNDO),
        migrations.RemoveConstraint(model_name="account", name="account_currency"),
    ]
