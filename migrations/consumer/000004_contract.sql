-- The consumer's contract in SQL, so that a consumer in any language takes part in a switchover with a few statements:
--
--   begin_call(…)   at the old endpoint     ┐ in one transaction with the effect,        ┌ finish_effect(…)  with the outcome
--   begin_event(…)  for a Kafka record      ├ which holds the lock of the key or of the ─┤
--   next_held(…)    for one that has waited ┘ effect until it ends                       └ park_effect(…)    given up, for now
--
-- docs/other-languages.md says how to use them. All that they write is what the TypeScript runtime writes: both may serve
-- one consumer side by side.

-- The decision about one arrival. The same as decide() in src/inbox/decide.ts; a test holds them equal.
create function turnout.decide_effect(event_id uuid, request_hash text, generation integer, number bigint, too_old boolean,
                                      known_outcome text, known_event_id uuid, known_request_hash text, known_lease_over boolean,
                                      gate_generation integer, gate_number bigint, gate_halted text)
returns text
language sql immutable parallel safe
as $$
  select case
    when known_outcome is not null then case
      when known_event_id <> event_id then 'reused'
      when known_request_hash <> request_hash then 'reused'
      when known_outcome = 'running' and known_lease_over then 'apply'
      when known_outcome in ('running', 'queued') then 'running'
      else 'repeat'
    end
    when number is null then case when too_old then 'skip' else 'apply' end
    when gate_halted is not null then 'halted'
    when generation < gate_generation or (generation = gate_generation and number <= gate_number) or number < 1
      then case when too_old then 'duplicate' else 'halt' end
    when number = 1 + case when generation = gate_generation then gate_number else 0 end then 'apply'
    else 'early'
  end
$$;

-- What to do with a Kafka record, before its effect is looked at. The same as planFor() in src/consumer/decide.ts; a test holds them equal.
--   sequence  what count_sequence() found, or 'off'
--   handler   'present', 'other-version', 'none'
create function turnout.plan_event(before_since boolean, sequence text, route text, in_switchover boolean, handler text, is_refused boolean)
returns text
language sql immutable parallel safe
as $$
  select case
    when before_since then 'observe before-since'
    when sequence = 'before-base' then 'observe before-base'
    when route = 'rpc' then 'observe route-rpc'
    when route is null and in_switchover then 'observe no-route'
    when route is null and handler = 'none' then 'observe no-handler'
    when is_refused then 'park refused'
    when handler = 'none' then 'park handler-missing'
    when handler = 'other-version' then 'park version-unhandled'
    else 'apply'
  end
$$;

-- Counts a record of a source in its partition. The same as countSequence() in src/consumer/decide.ts; a test holds them equal.
create function turnout.count_sequence(known_generation integer, known_base bigint, known_last bigint, generation integer, number bigint)
returns text
language sql immutable parallel safe
as $$
  select case
    when number is null then 'off'
    when known_generation is null then 'next'
    when generation < known_generation then 'repeat'
    when generation = known_generation and number < known_base then 'before-base'
    when generation > known_generation and number < 1 then 'before-base'
    when generation = known_generation and number <= known_last then 'repeat'
    when number = 1 + case when generation = known_generation then known_last else 0 end then 'next'
    else 'hole'
  end
$$;

-- The consumer's own entry in the text of `turnout-routes`; no row: it has none. Fails on a text that can't be read, as
-- parseRoutes() in src/event/routes.ts does; a test holds them equal.
create function turnout.route_of(routes text, consumer text)
returns table (route text, generation integer, number bigint)
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  entry text;
  parts text[];
  names text[];
  parameters jsonb;
  consumers text[] := '{}';
begin
  if routes is null then
    return;
  end if;
  foreach entry in array string_to_array(routes, ', ') loop
    parts := regexp_match(entry, '^([a-z0-9][a-z0-9._-]{0,99})=(rpc|event)((?:;[a-z][a-z0-9-]{0,49}=[^;,=]{0,200})+)$');
    if parts is null or parts[1] = any (consumers) then
      raise exception 'The routes can''t be read at %.', entry using errcode = 'invalid_text_representation';
    end if;
    consumers := consumers || parts[1];
    select array_agg(split_part(p, '=', 1)), jsonb_object_agg(split_part(p, '=', 1), split_part(p, '=', 2))
      into names, parameters
      from unnest(string_to_array(substr(parts[3], 2), ';')) p;
    -- What decides is read strictly: a spoilt number must not make an ordered event an unordered one.
    if cardinality(names) > (select count(*) from jsonb_object_keys(parameters))
       or coalesce(parameters ->> 'epoch', '') !~ '^[0-9]{1,15}$'
       or (parameters ? 'generation') <> (parameters ? 'number')
       or coalesce(parameters ->> 'generation', '1') !~ '^[0-9]{1,9}$'
       or coalesce(parameters ->> 'number', '1') !~ '^[0-9]{1,15}$' then
      raise exception 'The routes can''t be read at %.', entry using errcode = 'invalid_text_representation';
    end if;
    if parts[1] = consumer then
      route := parts[2];
      generation := (parameters ->> 'generation')::integer;
      number := (parameters ->> 'number')::bigint;
      return next;
    end if;
  end loop;
end
$$;

-- Percent-encoded UTF-8; fails if it is none.
create function turnout.percent_decode(encoded text)
returns text
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  bytes bytea := '';
  part text;
begin
  for part in select m[1] from regexp_matches(encoded, '(%[0-9a-fA-F]{2}|[^%]+|%)', 'g') m loop
    if part = '%' then
      raise exception 'A percent sign alone.' using errcode = 'invalid_text_representation';
    end if;
    bytes := bytes || case when left(part, 1) = '%' then decode(substr(part, 2), 'hex') else convert_to(part, 'UTF8') end;
  end loop;
  return convert_from(bytes, 'UTF8');
end
$$;

-- Enters the inbox for an effect, in the transaction in which it is to happen, and decides.
--   effect  {"consumer", "effectKey", "eventId", "eventType", "source", "topic", "key", "occurredAt", "generation", "number", "path", "requestHash"}
create function turnout.enter_effect(effect jsonb, retention interval, wait boolean)
returns table (decision text, answer text, outcome text, last_generation integer, last_number bigint, halted text, attempts integer)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  entry record;
  is_ordered boolean := effect ->> 'number' is not null;
  happened timestamptz := (effect ->> 'occurredAt')::timestamptz;
begin
  -- What is read after a lock was waited for has to be newer than the lock.
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'An effect needs a transaction at READ COMMITTED, not at %.', current_setting('transaction_isolation')
      using errcode = 'TU030';
  end if;
  if is_ordered or happened > clock_timestamp() - retention then
    perform turnout.make_inbox_partition(happened);
  end if;
  select * into entry from turnout.enter_inbox(
    effect ->> 'consumer', effect ->> 'effectKey', happened, effect ->> 'source', effect ->> 'topic', effect ->> 'key', is_ordered, wait,
    (extract(epoch from retention) * 1000)::bigint, 60000);
  if not entry.locked then
    decision := 'running';
    return next;
    return;
  end if;
  decision := turnout.decide_effect(
    (effect ->> 'eventId')::uuid, effect ->> 'requestHash', (effect ->> 'generation')::integer, (effect ->> 'number')::bigint, entry.too_old,
    entry.known_outcome, entry.known_event_id::uuid, entry.known_request_hash, entry.known_lease_over or entry.known_failed,
    entry.gate_generation, entry.gate_number::bigint, entry.gate_halted);
  answer := entry.known_answer;
  outcome := entry.known_outcome;
  attempts := coalesce(entry.known_attempts, 0) + 1;
  last_generation := greatest(entry.gate_generation, (effect ->> 'generation')::integer);
  last_number := case when entry.gate_generation >= (effect ->> 'generation')::integer then entry.gate_number::bigint else 0 end;
  halted := entry.gate_halted;
  if decision = 'halt' then
    halted := format('Number %s of generation %s is past, and the effect %s is not known.',
                     effect ->> 'number', effect ->> 'generation', effect ->> 'effectKey');
    perform turnout.halt_key(effect ->> 'consumer', effect ->> 'source', effect ->> 'topic', effect ->> 'key', halted, effect);
  elsif decision = 'skip' then
    perform turnout.alarm_once(effect ->> 'consumer', 'skipped-old', effect);
  elsif decision = 'repeat' and is_ordered then
    -- Published twice under one id: nobody will consume the second number.
    perform turnout.note_spare_number(effect ->> 'consumer', effect ->> 'effectKey', effect ->> 'source', effect ->> 'topic', effect ->> 'key',
                                      (effect ->> 'generation')::integer, (effect ->> 'number')::bigint);
  end if;
  return next;
end
$$;

-- One alarm for one effect, however often it comes back.
create function turnout.alarm_once(consumer text, kind text, detail jsonb)
returns void
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  insert into turnout.alarm (consumer, kind, detail)
    select alarm_once.consumer, alarm_once.kind, alarm_once.detail
    where not exists (select from turnout.alarm a where a.consumer = alarm_once.consumer and a.kind = alarm_once.kind
                        and a.detail ->> 'effectKey' = alarm_once.detail ->> 'effectKey')
$$;

-- Begins a call at the old endpoint, in the transaction in which its handler is to work.
--   headers    of the request, {"<name>": "<value>", …}
--   body_hash  anything that is the same for the same body, such as its SHA-256 in hexadecimal
--   ordered    as the switchover is: order 'key'
-- Gives `action`:
--   'pass'    no headers of Turnout: do as ever; there is nothing to finish
--   'apply'   let the handler work, then finish_effect(effect, …), then commit
--   'answer'  commit, and send status, headers and body; `why` is for the log
create function turnout.begin_call(consumer text, headers jsonb, body_hash text, ordered boolean, retention interval default '30 days')
returns table (action text, effect jsonb, why text, status integer, answer_headers jsonb, body text, encoding text)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  first_outcome jsonb := '{}';
  given jsonb := (select coalesce(jsonb_object_agg(lower(h.key), trim(h.value)), '{}') from jsonb_each_text(begin_call.headers) h);
  names constant text[] := array['idempotency-key', 'turnout-consumer', 'turnout-event-id', 'turnout-event-type', 'turnout-event-source',
                                 'turnout-event-topic', 'turnout-event-time'];
  bad text;
  place text[];
  entry record;
  stored jsonb;
begin
  encoding := 'text';
  if not exists (select from jsonb_object_keys(given) n where n like 'turnout-%') then
    action := 'pass';
    return next;
    return;
  end if;

  action := 'answer';
  place := regexp_match(given ->> 'turnout-key-number', '^([0-9]{1,9})\.([0-9]{1,15})$');
  select n into bad from unnest(names) n where coalesce(given ->> n, '') = '' or length(given ->> n) > 8000 limit 1;
  bad := coalesce(bad, case
    when given ->> 'turnout-consumer' <> begin_call.consumer then 'turnout-consumer'
    when lower(given ->> 'turnout-event-id') !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'turnout-event-id'
    when given ->> 'turnout-event-time' !~ '^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$' then 'turnout-event-time'
    when (given ? 'turnout-key-number') <> begin_call.ordered or (begin_call.ordered and (place is null or place[1]::integer < 1 or place[2]::bigint < 1))
      then 'turnout-key-number'
    when begin_call.ordered and coalesce(given ->> 'turnout-event-key', '') = '' then 'turnout-event-key'
  end);
  if bad is null then
    begin
      effect := jsonb_build_object(
        'consumer', begin_call.consumer, 'effectKey', begin_call.consumer || '.' || lower(given ->> 'turnout-event-id'),
        'eventId', lower(given ->> 'turnout-event-id'), 'eventType', given ->> 'turnout-event-type',
        'source', given ->> 'turnout-event-source', 'topic', given ->> 'turnout-event-topic',
        'key', turnout.percent_decode(given ->> 'turnout-event-key'), 'occurredAt', (given ->> 'turnout-event-time')::timestamptz,
        'generation', place[1]::integer, 'number', place[2]::bigint, 'path', 'rpc', 'requestHash', begin_call.body_hash);
      -- Far ahead of this clock it is no event's time, and would make an inbox partition.
      if (effect ->> 'occurredAt')::timestamptz > clock_timestamp() + interval '1 day' then
        bad := 'turnout-event-time';
      end if;
    exception when data_exception or character_not_in_repertoire or untranslatable_character then
      bad := 'turnout-event-time or turnout-event-key';
    end;
  end if;
  if bad is not null then
    why := 'malformed';
    status := 400;
    answer_headers := '{"content-type": "application/json", "turnout-error": "TURNOUT_CALL_HEADERS_MALFORMED"}';
    body := json_build_object('error', json_build_object('code', 'TURNOUT_CALL_HEADERS_MALFORMED',
                              'message', format('The header %s is missing or can''t be read.', bad)));
    effect := null;
    return next;
    return;
  end if;

  if trim(both '"' from given ->> 'idempotency-key') <> effect ->> 'effectKey' then
    select 'reused' as decision, null::text as answer, null::text as outcome, null::integer as last_generation, null::bigint as last_number,
           null::text as halted, 1 as attempts into entry;
  else
    select * into entry from turnout.enter_effect(effect, retention, false);
  end if;
  why := entry.decision;
  if why = 'apply' then
    action := 'apply';
    effect := effect || jsonb_build_object('attempts', entry.attempts, 'xid', pg_current_xact_id()::text);
    return next;
    return;
  end if;
  effect := null;
  answer_headers := '{"content-type": "application/json"}';
  body := '{}';
  if why = 'repeat' and entry.outcome <> 'applied' then
    -- Else a repeat of what was given up would look like one of what was done.
    first_outcome := jsonb_build_object('turnout-first-outcome', entry.outcome);
  end if;
  if why = 'repeat' and entry.answer is not null then
    stored := entry.answer::jsonb;
    status := (stored ->> 'status')::integer;
    answer_headers := (stored -> 'headers') || first_outcome || '{"turnout-outcome": "duplicate"}';
    body := coalesce(stored ->> 'body', '');
    encoding := coalesce(stored ->> 'encoding', 'text');
  elsif why in ('repeat', 'duplicate') then
    status := case when first_outcome <> '{}' then 422 else 200 end;
    answer_headers := answer_headers || first_outcome || '{"turnout-outcome": "duplicate"}';
  elsif why = 'skip' then
    status := 200;
    answer_headers := answer_headers || '{"turnout-answer": "none", "turnout-outcome": "skipped"}';
  else
    select e.status, answer_headers || jsonb_build_object('turnout-error', e.code) || coalesce(e.more, '{}'),
           json_build_object('error', json_build_object('code', e.code, 'message', e.message))
      into status, answer_headers, body
      from (values
        ('early', 425, 'TURNOUT_EFFECT_EARLY', 'Events of the key before this one are missing.',
         case when why = 'early' then jsonb_build_object('turnout-last-number', entry.last_generation || '.' || entry.last_number) end),
        ('running', 409, 'TURNOUT_EFFECT_RUNNING', 'The effect, or another one of its key, is being applied.', '{"retry-after": "1"}'),
        ('reused', 422, 'TURNOUT_EFFECT_KEY_REUSED', 'The effect key belongs to another event or another body.', null),
        ('halt', 503, 'TURNOUT_GATE_HALTED', case when why = 'halt' then entry.halted end, null),
        ('halted', 503, 'TURNOUT_GATE_HALTED', case when why = 'halted' then entry.halted end, null)
      ) as e (decision, status, code, message, more)
      where e.decision = why;
  end if;
  return next;
end
$$;

-- Begins with a Kafka record, in the transaction in which its handler is to work. It counts the record's sequence and notes how far
-- the partition is; the group's offset at the broker is the caller's to commit, after this transaction.
--   record         {"topic", "partition", "offset", "key", "value": "<text>", "headers": {"<name>": "<value>", …}}
--   types          the event types that are handled, as 'type' or 'type v2'; null: all
--   in_switchover  true: what has no route for this consumer is only observed
-- Gives `action`:
--   'apply'      let the handler work, then finish_effect(effect), then commit
--   'observe', 'duplicate', 'held'  commit; there is nothing more to do. `why` is for the log
--   'busy'       roll back, and try the record again shortly
create function turnout.begin_event(consumer text, record jsonb, types text[] default null, in_switchover boolean default true,
                                    retention interval default '30 days')
returns table (action text, effect jsonb, why text)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  given constant jsonb := begin_event.record -> 'headers';
  record_topic constant text := begin_event.record ->> 'topic';
  record_partition constant integer := (begin_event.record ->> 'partition')::integer;
  record_offset constant bigint := (begin_event.record ->> 'offset')::bigint;
  message constant jsonb := jsonb_build_object('key', begin_event.record -> 'key', 'value', begin_event.record -> 'value', 'headers', given);
  record_source constant text := coalesce(nullif(given ->> 'ce_source', ''), 'unknown');
  record_since bigint;
  place text[];
  counted turnout.consumed_sequence;
  finding text := 'off';
  stamp record;
  event_version text := coalesce(given ->> 'turnout-version', '1');
  handler text := 'present';
  plan text;
  malformed text;
  entry record;
  held_as text;
begin
  insert into turnout.position as p (consumer, topic, partition, next_offset, since)
    values (begin_event.consumer, record_topic, record_partition, record_offset + 1, record_offset)
    on conflict (consumer, topic, partition) do update
      set next_offset = greatest(p.next_offset, excluded.next_offset), updated_at = clock_timestamp()
    returning p.since into record_since;

  begin
    place := regexp_match(given ->> 'ce_sequence', '^([0-9]{6,9})-([0-9]{20})$');
    if given ? 'ce_sequence' and place is null then
      malformed := 'ce_sequence';
    elsif coalesce(given ->> 'ce_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
      malformed := 'ce_id';
    elsif coalesce(given ->> 'ce_type', '') = '' or coalesce(given ->> 'ce_source', '') = '' or begin_event.record ->> 'value' is null then
      malformed := 'ce_type, ce_source or value';
    end if;
    select * into stamp from turnout.route_of(given ->> 'turnout-routes', begin_event.consumer);
    effect := jsonb_build_object(
      'consumer', begin_event.consumer, 'effectKey', begin_event.consumer || '.' || (given ->> 'ce_id'), 'eventId', given ->> 'ce_id',
      'eventType', given ->> 'ce_type', 'source', record_source, 'topic', record_topic, 'key', begin_event.record ->> 'key',
      'occurredAt', (given ->> 'ce_time')::timestamptz, 'generation', stamp.generation, 'number', stamp.number, 'path', 'event');
    if given ->> 'ce_time' is null then
      malformed := 'ce_time';
    end if;
  exception when data_exception then
    malformed := 'ce_time or turnout-routes';
  end;

  if place is not null then
    select * into counted from turnout.consumed_sequence c
      where c.consumer = begin_event.consumer and c.topic = record_topic and c.partition = record_partition and c.source = record_source;
    finding := turnout.count_sequence(counted.generation, counted.base, counted.last, place[1]::integer, place[2]::bigint);
  end if;
  if finding in ('next', 'hole') then
    insert into turnout.consumed_sequence as c (consumer, topic, partition, source, generation, base, last)
      values (begin_event.consumer, record_topic, record_partition, record_source, place[1]::integer,
              case when counted.generation is null then place[2]::bigint when counted.generation = place[1]::integer then counted.base else 1 end,
              place[2]::bigint)
      on conflict (consumer, topic, partition, source) do update
        set generation = excluded.generation, base = excluded.base, last = excluded.last;
  end if;
  if finding = 'hole' then
    insert into turnout.alarm (consumer, kind, detail)
      values (begin_event.consumer, 'sequence-hole', jsonb_build_object(
        'topic', record_topic, 'partition', record_partition, 'source', record_source, 'generation', place[1]::integer,
        'from', (case when counted.generation = place[1]::integer then counted.last else 0 end + 1)::text,
        'to', (place[2]::bigint - 1)::text));
  end if;

  if types is not null then
    handler := case when given ->> 'ce_type' = any (types) or (given ->> 'ce_type') || ' v' || event_version = any (types) then 'present'
                    when exists (select from unnest(types) t where starts_with(t, (given ->> 'ce_type') || ' v')) then 'other-version'
                    else 'none' end;
  end if;
  plan := case when malformed is not null and record_offset >= record_since and finding <> 'before-base' then 'park malformed'
               else turnout.plan_event(record_offset < record_since, finding, stamp.route, in_switchover, handler, given ? 'turnout-refused') end;
  action := split_part(plan, ' ', 1);
  why := nullif(split_part(plan, ' ', 2), '');
  if action = 'observe' then
    effect := null;
    return next;
    return;
  end if;
  if why = 'malformed' then
    -- Under a made-up key: nothing that could be read may be taken for it.
    effect := jsonb_build_object(
      'consumer', begin_event.consumer, 'source', record_source, 'topic', record_topic, 'key', begin_event.record -> 'key', 'occurredAt', to_timestamp(0),
      'effectKey', format('%s.malformed.%s.%s.%s', begin_event.consumer, record_topic, record_partition, record_offset));
  end if;
  effect := effect || jsonb_build_object('message', message, 'partition', record_partition, 'offset', record_offset);
  if action = 'park' then
    action := turnout.set_aside(effect, 'parked', coalesce(malformed, why), 0);
    effect := null;
    return next;
    return;
  end if;

  -- A number that was not passed before is proof that it is no repeat, however old it is. A call may have brought a stamped one before.
  select * into entry
    from turnout.enter_effect(effect, case when stamp.route is null and finding in ('next', 'hole') then interval '100 years' else retention end, true);
  why := entry.decision;
  if why = 'apply' then
    if exists (select from turnout.held h where h.consumer = begin_event.consumer and h.effect_key = effect ->> 'effectKey') then
      action := turnout.hold_number(begin_event.consumer, effect ->> 'effectKey', (effect ->> 'occurredAt')::timestamptz, record_source,
                                    record_topic, effect ->> 'key', stamp.generation, stamp.number);
      effect := null;
      return next;
      return;
    end if;
    if stamp.number is null and finding = 'repeat' then
      -- It was here before by its sequence, and the inbox doesn't know it: somebody has to look.
      perform turnout.alarm_once(begin_event.consumer, 'unknown-repeat', effect - 'message');
      held_as := 'parked';
      why := 'TURNOUT_UNKNOWN_REPEAT';
    elsif stamp.number is not null and exists (
        select from turnout.held b where b.consumer = begin_event.consumer and b.source = record_source and b.topic = record_topic
          and b.key = effect ->> 'key' and b.number is null) then
      held_as := 'behind';
    else
      effect := effect || jsonb_build_object('attempts', entry.attempts, 'xid', pg_current_xact_id()::text);
      return next;
      return;
    end if;
  else
    held_as := case entry.decision when 'early' then 'early' when 'halted' then 'behind' when 'halt' then 'parked' when 'reused' then 'parked' end;
  end if;
  action := case when held_as is not null then turnout.set_aside(effect, held_as, case when held_as = 'parked' then coalesce(entry.halted, why) end, 0)
                 when entry.decision = 'running' then 'busy'
                 else 'duplicate' end;
  effect := null;
  return next;
end
$$;

-- Holds an event; 'held', 'duplicate' (it has its outcome by now), 'busy'. Without a number it is held without its key, so that nothing waits behind it.
create function turnout.set_aside(effect jsonb, reason text, error text, attempts integer)
returns text
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select case h.result when 'done' then 'duplicate' else h.result end
  from turnout.hold_event(
    effect ->> 'consumer', effect ->> 'effectKey', (effect ->> 'occurredAt')::timestamptz, reason, effect ->> 'source', effect ->> 'topic',
    (effect ->> 'partition')::integer, (effect ->> 'offset')::bigint,
    case when effect ->> 'number' is not null or effect ->> 'eventId' is null then effect ->> 'key' end,
    (effect ->> 'generation')::integer, (effect ->> 'number')::bigint, effect -> 'message', error, attempts) as h (result)
$$;

-- Held events that can go on, the next one of each key. The same as heldThatCanGoOn() in src/inbox/held.ts; a test holds them equal.
create function turnout.held_that_can_go_on(consumer text)
returns setof turnout.held
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select h.*
  from turnout.held h
  left join turnout.gate g using (consumer, source, topic, key)
  where h.consumer = held_that_can_go_on.consumer and h.reason <> 'parked'
    and (h.number is null or (g.halted is null and (
      h.generation < g.generation or (h.generation = g.generation and h.number <= g.last_number + 1)
      or (h.generation > coalesce(g.generation, 0) and h.number = 1))))
    and (h.key is null or not exists (
      select from turnout.held b
      where b.consumer = h.consumer and b.source = h.source and b.topic = h.topic and b.key = h.key and b.id < h.id
        and (b.number is null or (h.number is null and (b.reason = 'parked' or g.halted is not null
          or b.generation < g.generation or (b.generation = g.generation and b.number <= g.last_number + 1)
          or (b.generation > coalesce(g.generation, 0) and b.number = 1))))))
  order by h.id
$$;

-- Takes a held event whose turn has come, in the transaction in which its handler is to work; no row: there is none.
-- `record` is as begin_event takes it. Then finish_effect(effect), or park_effect(effect, …); commit; and ask again, until there is none.
create function turnout.next_held(consumer text)
returns table (effect jsonb, record jsonb)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  waiting turnout.held;
  entry record;
begin
  for waiting in
    select * from turnout.held_that_can_go_on(next_held.consumer) h
    -- What no text can hold was held by a process that can, and is left to it.
    where not h.message ? 'base64' and h.message -> 'headers' ->> 'ce_time' is not null
    order by h.id limit 100
  loop
    effect := jsonb_build_object(
      'consumer', waiting.consumer, 'effectKey', waiting.effect_key, 'eventId', waiting.message -> 'headers' ->> 'ce_id',
      'eventType', waiting.message -> 'headers' ->> 'ce_type', 'source', waiting.source, 'topic', waiting.topic, 'key', waiting.message -> 'key',
      'occurredAt', (waiting.message -> 'headers' ->> 'ce_time')::timestamptz, 'generation', waiting.generation, 'number', waiting.number,
      'path', 'event', 'message', waiting.message, 'partition', waiting.partition, 'offset', waiting."offset");
    -- It was new when it was held, and a held event never expires.
    select * into entry from turnout.enter_effect(effect, interval '100 years', false);
    if entry.decision = 'apply' then
      effect := effect || jsonb_build_object('attempts', waiting.attempts + 1, 'xid', pg_current_xact_id()::text);
      record := waiting.message || jsonb_build_object('topic', waiting.topic, 'partition', waiting.partition, 'offset', waiting."offset");
      return next;
      return;
    elsif entry.decision = 'repeat' then
      delete from turnout.held h where h.id = waiting.id;
    elsif entry.decision in ('halt', 'reused') then
      update turnout.held h set reason = 'parked', error = coalesce(entry.halted, entry.decision) where h.id = waiting.id;
    end if;
  end loop;
end
$$;

-- Writes the outcome of an effect that was begun in this transaction: 'applied', or 'rejected' (refused for good; what the handler
-- wrote has to be rolled back to a savepoint first), or 'dead' (given up for good). Each consumes the key's number.
--   answer  {"status", "headers", "body", "encoding": "text" | "base64"}: given again to whoever repeats the call
create function turnout.finish_effect(effect jsonb, outcome text default 'applied', answer jsonb default null, reason text default null)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
begin
  perform turnout.check_begun(effect);
  if outcome is null or outcome not in ('applied', 'rejected', 'dead') then
    raise exception 'An effect ends applied, rejected or dead, not %.', quote_nullable(outcome) using errcode = 'invalid_parameter_value';
  end if;
  perform turnout.record_outcome(
    effect ->> 'consumer', effect ->> 'effectKey', (effect ->> 'occurredAt')::timestamptz, (effect ->> 'eventId')::uuid, effect ->> 'eventType',
    effect ->> 'source', effect ->> 'topic', effect ->> 'key', (effect ->> 'generation')::integer, (effect ->> 'number')::bigint, effect ->> 'path',
    outcome, effect ->> 'requestHash', answer, reason, (effect ->> 'attempts')::integer);
end
$$;

-- Sets an event aside that keeps failing, so that others flow on: turnout.retry_parked and turnout.skip_parked let it go on.
-- In a transaction of its own, in which it was begun again after the handler's was rolled back. Not for calls: those are made again.
create function turnout.park_effect(effect jsonb, error text)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
begin
  perform turnout.check_begun(effect);
  if effect -> 'message' is null then
    raise exception 'Only events are parked; a call is answered without an outcome and made again.' using errcode = 'invalid_parameter_value';
  end if;
  perform turnout.set_aside(effect, 'parked', error, (effect ->> 'attempts')::integer);
end
$$;

-- The lock ends with its transaction: what is finished in another one was not protected by it.
create function turnout.check_begun(effect jsonb)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if effect ->> 'xid' is distinct from pg_current_xact_id()::text then
    raise exception 'The effect % was not begun in this transaction.', effect ->> 'effectKey' using errcode = 'TU031';
  end if;
end
$$;

do $$
declare
  routine regprocedure;
begin
  for routine in
    select p.oid::regprocedure from pg_catalog.pg_proc p
    where p.pronamespace = 'turnout'::regnamespace
      and p.proname in ('decide_effect', 'plan_event', 'count_sequence', 'route_of', 'percent_decode', 'enter_effect', 'alarm_once', 'begin_call',
                        'begin_event', 'set_aside', 'held_that_can_go_on', 'next_held', 'finish_effect', 'park_effect', 'check_begun')
  loop
    execute pg_catalog.format('revoke all on function %s from public', routine);
  end loop;
end
$$;
