-- A key number that comes with an effect that has another one: its event was published twice under one id. The effect happens once,
-- so nobody consumes the second number, and all that come after it would wait for ever. It is passed instead, and an alarm says so.

alter table turnout.alarm drop constraint alarm_kind_check;
alter table turnout.alarm add constraint alarm_kind_check
  -- 'repeated-id': an event was published twice, with two key numbers. 'number-passed': an operator let a key go on.
  check (kind in ('sequence-hole', 'unknown-repeat', 'skipped-old', 'halted', 'uncertain', 'repeated-id', 'number-passed'));

-- Further numbers of effects, until the gate of their key has come to them. Nearly always empty.
create table turnout.spare_number (
  consumer   text not null,
  source     text not null,
  topic      text not null,
  key        text not null,
  generation integer not null,
  number     bigint not null,
  effect_key text not null,
  primary key (consumer, source, topic, key, generation, number)
);

-- Moves the gate of a key over spare numbers, as far as they go. The effect of each has happened under another number: while one is held,
-- it has not.
create function turnout.pass_spare_numbers(consumer text, source text, topic text, key text)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  gate turnout.gate;
  spare record;
begin
  loop
    select * into gate from turnout.gate g
      where g.consumer = pass_spare_numbers.consumer and g.source = pass_spare_numbers.source and g.topic = pass_spare_numbers.topic
        and g.key = pass_spare_numbers.key;
    -- What is past came to nothing else.
    delete from turnout.spare_number s
      where s.consumer = gate.consumer and s.source = gate.source and s.topic = gate.topic and s.key = gate.key
        and (s.generation, s.number) <= (gate.generation, gate.last_number);
    delete from turnout.spare_number s
      where s.consumer = pass_spare_numbers.consumer and s.source = pass_spare_numbers.source and s.topic = pass_spare_numbers.topic
        and s.key = pass_spare_numbers.key
        and ((s.generation = gate.generation and s.number = gate.last_number + 1)
             or (s.generation > coalesce(gate.generation, 0) and s.number = 1))
        and not exists (select from turnout.held h where h.consumer = s.consumer and h.effect_key = s.effect_key)
      returning s.generation, s.number into spare;
    exit when not found;
    insert into turnout.gate as g (consumer, source, topic, key, generation, last_number)
      values (pass_spare_numbers.consumer, pass_spare_numbers.source, pass_spare_numbers.topic, pass_spare_numbers.key,
              spare.generation, spare.number)
      on conflict (consumer, source, topic, key) do update set generation = excluded.generation, last_number = excluded.last_number;
  end loop;
end
$$;

-- Notes that an effect that has its outcome, or is held under a lower number, came with this one too. It is passed now, or
-- when its turn comes; nothing else happens. One that is past already is left alone: that is what a repeat usually has.
create function turnout.note_spare_number(consumer text, effect_key text, source text, topic text, key text, generation integer,
                                          number bigint)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
begin
  if note_spare_number.number is null or exists (
      select from turnout.gate g
      where g.consumer = note_spare_number.consumer and g.source = note_spare_number.source and g.topic = note_spare_number.topic
        and g.key = note_spare_number.key
        and (g.generation, g.last_number) >= (note_spare_number.generation, note_spare_number.number)) then
    return;
  end if;
  insert into turnout.spare_number (consumer, source, topic, key, generation, number, effect_key)
    values (note_spare_number.consumer, note_spare_number.source, note_spare_number.topic, note_spare_number.key,
            note_spare_number.generation, note_spare_number.number, note_spare_number.effect_key)
    on conflict do nothing;
  if found then
    insert into turnout.alarm (consumer, kind, detail)
      values (note_spare_number.consumer, 'repeated-id', jsonb_build_object(
        'effectKey', note_spare_number.effect_key, 'source', note_spare_number.source, 'topic', note_spare_number.topic,
        'key', note_spare_number.key, 'generation', note_spare_number.generation, 'number', note_spare_number.number));
  end if;
  perform turnout.pass_spare_numbers(note_spare_number.consumer, note_spare_number.source, note_spare_number.topic, note_spare_number.key);
end
$$;

-- As in 000001; further, a number under which the effect was held is spare when it has its outcome under another, and the gate goes on over
-- spare numbers.
create or replace function turnout.record_outcome(consumer text, effect_key text, occurred_at timestamptz, event_id uuid, event_type text,
                                                  source text, topic text, key text, generation integer, number bigint, path text,
                                                  outcome text, request_hash text, answer jsonb, reason text, attempts integer)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  held record;
begin
  insert into turnout.inbox as i (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, generation, number,
                                  path, outcome, request_hash, answer, reason, attempts)
    values (record_outcome.consumer, record_outcome.effect_key, record_outcome.occurred_at, record_outcome.event_id,
            record_outcome.event_type, record_outcome.source, record_outcome.topic, record_outcome.key, record_outcome.generation,
            record_outcome.number, record_outcome.path, record_outcome.outcome, record_outcome.request_hash, record_outcome.answer,
            record_outcome.reason, record_outcome.attempts)
    on conflict (consumer, effect_key, occurred_at) do update
      set outcome = excluded.outcome, path = excluded.path, request_hash = coalesce(excluded.request_hash, i.request_hash),
          answer = excluded.answer, reason = excluded.reason, attempts = excluded.attempts, finished_at = clock_timestamp()
      where i.outcome in ('running', 'queued');
  if not found then
    raise exception 'The effect % of % already has an outcome.', record_outcome.effect_key, record_outcome.consumer
      using errcode = 'unique_violation';
  end if;
  if record_outcome.outcome in ('running', 'queued') then
    return;
  end if;
  if record_outcome.number is not null then
    insert into turnout.gate as g (consumer, source, topic, key, generation, last_number)
      select record_outcome.consumer, record_outcome.source, record_outcome.topic, record_outcome.key,
             record_outcome.generation, record_outcome.number
      on conflict (consumer, source, topic, key) do update
        set generation = excluded.generation, last_number = excluded.last_number
        where (g.generation = excluded.generation and g.last_number + 1 = excluded.last_number)
           or (g.generation < excluded.generation and excluded.last_number = 1);
    if not found then
      raise exception 'Number % of key % is not the next one for %.', record_outcome.number, record_outcome.key, record_outcome.consumer
        using errcode = 'serialization_failure';
    end if;
  end if;
  delete from turnout.held h where h.consumer = record_outcome.consumer and h.effect_key = record_outcome.effect_key
    returning h.source, h.topic, h.key, h.generation, h.number into held;
  if held.number is not null then
    perform turnout.note_spare_number(record_outcome.consumer, record_outcome.effect_key, held.source, held.topic, held.key,
                                      held.generation, held.number);
  end if;
  if record_outcome.number is not null and exists (
      select from turnout.spare_number s
      where s.consumer = record_outcome.consumer and s.source = record_outcome.source and s.topic = record_outcome.topic
        and s.key = record_outcome.key) then
    perform turnout.pass_spare_numbers(record_outcome.consumer, record_outcome.source, record_outcome.topic, record_outcome.key);
  end if;
end
$$;

-- For an effect that is held and comes again: of two numbers the lower is held, and the other one noted.
-- 'held'; 'busy': somebody is at it, or at its key, just now, or it is held no more, and nothing was written.
create function turnout.hold_number(consumer text, effect_key text, occurred_at timestamptz, source text, topic text, key text,
                                    generation integer, number bigint)
returns text
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  held turnout.held;
begin
  select * into held from turnout.held h where h.consumer = hold_number.consumer and h.effect_key = hold_number.effect_key;
  if (held.generation, held.number) = (hold_number.generation, hold_number.number) or hold_number.number is null then
    return 'held';
  end if;
  perform from turnout.enter_inbox(hold_number.consumer, hold_number.effect_key, hold_number.occurred_at, hold_number.source,
                                   hold_number.topic, hold_number.key, true, false, 0, 0) e where e.locked;
  if not found then
    return 'busy';
  end if;
  select * into held from turnout.held h
    where h.consumer = hold_number.consumer and h.effect_key = hold_number.effect_key for update;
  if not found then
    return 'busy';
  end if;
  if (hold_number.generation, hold_number.number) < (held.generation, held.number) then
    update turnout.held h set generation = hold_number.generation, number = hold_number.number where h.id = held.id;
    perform turnout.note_spare_number(held.consumer, held.effect_key, held.source, held.topic, held.key, held.generation, held.number);
  else
    perform turnout.note_spare_number(hold_number.consumer, hold_number.effect_key, hold_number.source, hold_number.topic, hold_number.key,
                                      hold_number.generation, hold_number.number);
  end if;
  return 'held';
end
$$;

-- As in 000001; further, no number is lost that comes with an effect that is held, or has its outcome.
create or replace function turnout.hold_event(consumer text, effect_key text, occurred_at timestamptz, reason text, source text, topic text,
                                              partition integer, "offset" bigint, key text, generation integer, number bigint,
                                              message jsonb, error text, attempts integer)
returns text
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  entry record;
  held record;
begin
  select e.locked, e.known_outcome into entry
    from turnout.enter_inbox(hold_event.consumer, hold_event.effect_key, hold_event.occurred_at, hold_event.source, hold_event.topic,
                             hold_event.key, hold_event.number is not null, false, 0, 0) e;
  if not entry.locked then
    return 'busy';
  end if;
  if entry.known_outcome not in ('running', 'queued') then
    delete from turnout.held h where h.consumer = hold_event.consumer and h.effect_key = hold_event.effect_key
      returning h.source, h.topic, h.key, h.generation, h.number into held;
    perform turnout.note_spare_number(hold_event.consumer, hold_event.effect_key, held.source, held.topic, held.key,
                                      held.generation, held.number);
    perform turnout.note_spare_number(hold_event.consumer, hold_event.effect_key, hold_event.source, hold_event.topic, hold_event.key,
                                      hold_event.generation, hold_event.number);
    return 'done';
  end if;
  insert into turnout.held as h (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message, error, attempts)
    values (hold_event.consumer, hold_event.effect_key, hold_event.reason, hold_event.source, hold_event.topic, hold_event.partition,
            hold_event."offset", hold_event.key, hold_event.generation, hold_event.number, hold_event.message, hold_event.error,
            hold_event.attempts)
    on conflict (consumer, effect_key) do update
      set reason = excluded.reason, error = excluded.error, attempts = excluded.attempts;
  perform turnout.hold_number(hold_event.consumer, hold_event.effect_key, hold_event.occurred_at, hold_event.source, hold_event.topic,
                              hold_event.key, hold_event.generation, hold_event.number);
  return 'held';
end
$$;

-- For an operator: moves the gate of a key past a number whose event will never come, such as one that was lost with its topic. Only
-- the next number, with a reason, which stays as an alarm that somebody has seen. If the event comes after all, it halts the key.
create function turnout.pass_number(consumer text, source text, topic text, key text, generation integer, number bigint, reason text)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_column
declare
  gate turnout.gate;
  waiting record;
  place constant jsonb := jsonb_build_object('consumer', pass_number.consumer, 'source', pass_number.source, 'topic', pass_number.topic,
                                             'key', pass_number.key, 'generation', pass_number.generation, 'number', pass_number.number);
begin
  if coalesce(trim(pass_number.reason), '') = '' then
    raise exception 'To pass a number needs a reason.' using errcode = 'TU012', detail = place::text;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(concat_ws(e'\x1f', 'key', pass_number.consumer, pass_number.source, pass_number.topic,
                                                           pass_number.key), 7472));
  select * into gate from turnout.gate g
    where g.consumer = pass_number.consumer and g.source = pass_number.source and g.topic = pass_number.topic and g.key = pass_number.key;
  if ((pass_number.generation = gate.generation and pass_number.number = gate.last_number + 1)
      or (pass_number.generation > coalesce(gate.generation, 0) and pass_number.number = 1)) is not true then
    raise exception 'Number % of generation % is not the next one of key %: the gate stands at %.', pass_number.number, pass_number.generation,
                    pass_number.key, coalesce(gate.generation || '.' || gate.last_number, 'its start')
      using errcode = 'TU036', detail = (place || jsonb_build_object('lastGeneration', gate.generation, 'lastNumber', gate.last_number))::text;
  end if;
  select h.effect_key, h.reason into waiting from turnout.held h
    where h.consumer = pass_number.consumer and h.source = pass_number.source and h.topic = pass_number.topic and h.key = pass_number.key
      and h.generation = pass_number.generation and h.number = pass_number.number;
  if found then
    raise exception 'Number % of key % has come: it is held as %, %.', pass_number.number, pass_number.key, waiting.effect_key, waiting.reason
      using errcode = 'TU037', detail = (place || jsonb_build_object('effectKey', waiting.effect_key, 'reason', waiting.reason))::text;
  end if;
  insert into turnout.gate as g (consumer, source, topic, key, generation, last_number)
    values (pass_number.consumer, pass_number.source, pass_number.topic, pass_number.key, pass_number.generation, pass_number.number)
    on conflict (consumer, source, topic, key) do update set generation = excluded.generation, last_number = excluded.last_number;
  insert into turnout.alarm (consumer, kind, detail, seen_at, seen_by, seen_reason)
    values (pass_number.consumer, 'number-passed', place, clock_timestamp(), session_user, pass_number.reason);
  perform turnout.pass_spare_numbers(pass_number.consumer, pass_number.source, pass_number.topic, pass_number.key);
end
$$;

revoke all on turnout.spare_number from public;
revoke all on function turnout.pass_spare_numbers(text, text, text, text),
  turnout.note_spare_number(text, text, text, text, text, integer, bigint),
  turnout.hold_number(text, text, timestamptz, text, text, text, integer, bigint),
  turnout.pass_number(text, text, text, text, integer, bigint, text) from public;
