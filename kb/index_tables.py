"""The tables of the index, as SQL. The comments stay in the file: `.schema` in `sqlite3` shows them.

`table_docs` repeats the first line of each, for those who look with Datasette.
"""

from __future__ import annotations

TABLE_DOCS = {
    "meta": "What the index was built from and by: schema_version, kb_version, stamp.",
    "table_docs": "This table: what each table holds.",
    "entries": "One row for each entry, withdrawn ones included; `record` is the whole published record as JSON.",
    "aliases": "Other names of entries: vendor codes, retired ids, merged families.",
    "tags": "Tags of entries.",
    "signatures": "Wordings that are matched, with all that decides. Withdrawn entries have none.",
    "literals": "Signatures by the texts of which one stands in whatever they match, and by one gram of each text.",
    "causes": "Ways to get an error.",
    "workarounds": "Fixes as claimed, with their state and headline rate: k of n, Wilson 95 % interval.",
    "dead_ends": "What does not help, with its state and headline rate; k counts failures.",
    "versions": "Releases in which behaviour was seen or changed.",
    "transitions": "Links between entries, authored or measured.",
    "evidence": "One row for each evidence file: one run of one entry's verification script.",
    "trials": "One row for each trial of a run: one arm in one configuration.",
    "rates": "k of n distinct cells for each claim and device.",
    "problems": "Files of the catalogue that were left out, and why.",
    "entries_fts": "Full-text search over entries; Chinese, Japanese and Korean characters one by one.",
}

SQL = """
create table meta (key text primary key, value text not null);
create table table_docs (name text primary key, description text not null);
create table entries (
  id text primary key,
  domain text not null,
  category text not null,
  subcategory text,
  kind text not null,              -- error, wrapper, warning
  signature text not null,
  root_cause text not null,
  recoverability text not null,
  resolvable text not null,
  error_code text,
  locale text not null,
  verification_tier text not null,
  tier_reason text not null,
  confidence real,                 -- Wilson lower bound of the first-ranked fix
  fix_success_rate real,           -- its rate
  evidence_count integer not null, -- files that speak of today's script
  last_confirmed text,
  last_updated text,
  first_seen text,
  withdrawn text,                  -- why, null if it is not
  moved_to text,
  layer text not null,
  folder text,
  record text not null             -- JSON
);
create table aliases (alias text, entry_id text references entries (id), primary key (alias, entry_id));
create table tags (entry_id text references entries (id), tag text, primary key (entry_id, tag));
create table signatures (
  number integer primary key,
  entry_id text references entries (id),
  ordinal integer,                 -- 0 the entry's own, then its variants, an imported one last
  signature text not null,
  regex text not null,
  literals text not null,          -- JSON array: one of them stands in every case-folded text that matches
  engine text not null,            -- re2, or regex for what RE2 refuses
  frames text not null,            -- JSON array
  exceptions text not null,        -- JSON array
  kind text not null,
  supersedes text not null,        -- JSON array
  legacy integer not null,         -- 1 for an imported pattern
  unique (entry_id, ordinal)
);
create table literals (
  gram text,                       -- four characters of the literal that few others have; empty for a short one
  literal text,                    -- case-folded
  signature integer references signatures (number),
  primary key (gram, literal, signature)
) without rowid;
create table causes (
  entry_id text references entries (id), id text, summary text not null, detection text not null,
  primary key (entry_id, id)
);
create table workarounds (
  entry_id text references entries (id), ordinal integer, id text not null, action text not null, how text not null,
  kind text not null, state text not null, state_reason text not null, success_rate real,
  k integer, n integer, low real, high real, device text,
  primary key (entry_id, ordinal)
);
create table dead_ends (
  entry_id text references entries (id), ordinal integer, id text not null, action text not null,
  why_fails text not null, state text not null, state_reason text not null, fail_rate real,
  k integer, n integer, low real, high real, device text,
  primary key (entry_id, ordinal)
);
create table versions (
  entry_id text references entries (id), version text not null, introduced text, deprecated text, removed text,
  behavior_change text, status text not null
);
create table transitions (
  entry_id text references entries (id),
  relation text not null,          -- leads_to, preceded_by, frequently_confused_with
  other_id text not null,
  origin text not null             -- authored, measured
);
create index transitions_by_entry on transitions (entry_id);
create table evidence (
  file text primary key, entry_id text references entries (id), started_at text not null, seconds real not null,
  kb_version text not null, "commit" text, contributed_by text, device text not null, gpu text,
  compute_capability text, driver text, cuda text, torch text, python text not null, os text not null,
  trials integer not null, fresh_trials integer not null
);
create table trials (
  file text references evidence (file), entry_id text references entries (id), arm text not null, claim_id text,
  test text not null, config text not null, control text, outcome text not null, reason text, exception text,
  message text, fresh integer not null, seconds real not null, step_seconds real, peak_bytes integer,
  reference_error real
);
create table rates (
  entry_id text references entries (id),
  arm text not null,               -- reproduce, workaround, dead_end
  claim_id text,
  k integer not null, n integer not null, low real not null, high real not null, device text not null,
  environments text not null,      -- JSON array
  last_run text not null, step_seconds real, peak_bytes integer
);
create table problems (file text not null, field text not null, message text not null, remedy text not null);
create virtual table entries_fts using fts5(
  id, aliases, signatures, tags, root_cause, causes, actions, zh, tokenize = 'unicode61 remove_diacritics 2'
);
"""
