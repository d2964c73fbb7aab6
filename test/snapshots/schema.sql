CREATE SCHEMA turnout;

CREATE FUNCTION turnout.accept_repeat(consumer text, effect_key text, how text, reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
#variable_conflict use_column
declare
  detail jsonb;
  happened timestamptz;
begin
  if coalesce(trim(accept_repeat.reason), '') = '' then
    raise exception 'To accept a repeat needs a reason.' using errcode = 'TU012', detail = json_build_object('effectKey', accept_repeat.effect_key)::text;
  end if;
  if accept_repeat.how is null or accept_repeat.how not in ('apply', 'skip') then
    raise exception 'A repeat is accepted by ''apply'' or ''skip'', not by %.', quote_nullable(accept_repeat.how) using errcode = 'invalid_parameter_value';
  end if;
  select a.detail into detail from turnout.alarm a
    where a.consumer = accept_repeat.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'effectKey' = accept_repeat.effect_key
      and a.detail ->> 'code' = 'TURNOUT_UNKNOWN_REPEAT'
    order by a.id desc limit 1;
  if not found then
    return false;
  end if;
  if accept_repeat.how = 'skip' then
    happened := (detail ->> 'occurredAt')::timestamptz;
    perform turnout.make_inbox_partition(happened);
    insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, path, outcome, reason)
      values (accept_repeat.consumer, accept_repeat.effect_key, happened, (detail ->> 'eventId')::uuid, detail ->> 'type',
              detail ->> 'source', detail ->> 'topic', detail ->> 'key', 'event', 'skipped', accept_repeat.reason)
      on conflict do nothing;
  end if;
  update turnout.alarm a
    set detail = a.detail || jsonb_build_object('accepted', accept_repeat.how, 'acceptedBy', session_user, 'reason', accept_repeat.reason)
    where a.consumer = accept_repeat.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'effectKey' = accept_repeat.effect_key;
  return true;
end
$$;

CREATE FUNCTION turnout.alarm_once(consumer text, kind text, detail jsonb) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  insert into turnout.alarm (consumer, kind, detail)
    select alarm_once.consumer, alarm_once.kind, alarm_once.detail
    where not exists (select from turnout.alarm a where a.consumer = alarm_once.consumer and a.kind = alarm_once.kind
                        and a.detail ->> 'effectKey' = alarm_once.detail ->> 'effectKey')
$$;

CREATE FUNCTION turnout.await_replies(effect_keys text[], switchovers text[], routes text[], reply_types text[] DEFAULT NULL::text[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  insert into turnout.reply (effect_key, switchover, route, reply_type)
    select e.effect_key, e.switchover, e.route, e.reply_type
    from unnest(await_replies.effect_keys, await_replies.switchovers, await_replies.routes, await_replies.reply_types)
         as e (effect_key, switchover, route, reply_type)
    order by e.effect_key
    on conflict (effect_key) do nothing
$$;

CREATE FUNCTION turnout.bad_header(headers jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select case
    when headers is null or jsonb_typeof(headers) = 'null' then null
    when jsonb_typeof(headers) <> 'object' then 'headers'
    else (select 'headers.' || h.key from jsonb_each(headers) h
            where jsonb_typeof(h.value) <> 'string' or h.key = '' or turnout.is_reserved_header(h.key)
            order by h.key limit 1)
  end
$$;

CREATE FUNCTION turnout.begin_call(consumer text, headers jsonb, body_hash text, ordered boolean, retention interval DEFAULT '30 days'::interval) RETURNS TABLE(action text, effect jsonb, why text, status integer, answer_headers jsonb, body text, encoding text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION turnout.begin_event(consumer text, record jsonb, types text[] DEFAULT NULL::text[], in_switchover boolean DEFAULT true, retention interval DEFAULT '30 days'::interval) RETURNS TABLE(action text, effect jsonb, why text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION turnout.capture_write() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  before text := current_setting('turnout.captured', true);
  line text;
begin
  if before in ('too large', 'failed') then
    return null;
  end if;
  begin
    line := jsonb_build_object('table', tg_argv[0], 'op', lower(tg_op),
                               'old', case when tg_op in ('UPDATE', 'DELETE') then to_jsonb(old) end,
                               'new', case when tg_op in ('INSERT', 'UPDATE') then to_jsonb(new) end)::text;
    if length(coalesce(before, '')) + length(line) > current_setting('turnout.capture')::integer then
      perform set_config('turnout.captured', 'too large', true);
    else
      perform set_config('turnout.captured', coalesce(before, '') || line || e'\n', true);
    end if;
  exception when others then
    perform set_config('turnout.captured', 'failed', true);
  end;
  return null;
end
$$;

CREATE FUNCTION turnout.change_stage(source text, name text, stage text, reason text, percent numeric, force boolean, automatic boolean, detail jsonb, expected_epoch bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  current turnout.switchover;
  -- As the column keeps it: 0.001 is 0.
  share numeric(5, 2);
  promotes boolean;
  undeclared record;
  latest turnout.switchover_check;
  owed bigint := 0;
  problem record;
  told jsonb := '[]';
  forced text[] := '{}';
begin
  select * into current from turnout.switchover s
    where s.source = change_stage.source and s.name = change_stage.name for no key update;
  if not found then
    raise exception 'Switchover % does not exist in source %.', change_stage.name, change_stage.source
      using errcode = 'TU002', detail = json_build_object('switchover', change_stage.name, 'source', change_stage.source)::text;
  end if;
  if change_stage.expected_epoch <> current.epoch then
    raise exception 'Switchover % is in epoch %, and no more in %.', current.name, current.epoch, change_stage.expected_epoch
      using errcode = 'TU042', detail = json_build_object('switchover', current.name, 'stage', current.stage, 'epoch', current.epoch,
                                                          'expectedEpoch', change_stage.expected_epoch)::text;
  end if;
  -- 'NaN' is above everything.
  share := case when change_stage.percent is not null then least(greatest(change_stage.percent, -1), 101) end;
  if change_stage.stage = current.stage and (current.stage <> 'ramp' or share = current.percent) then
    return current.epoch;
  end if;

  promotes := coalesce(turnout.stage_rank(change_stage.stage) > turnout.stage_rank(current.stage), false)
    or (change_stage.stage = 'ramp' and current.stage = 'ramp' and share > current.percent);
  if automatic and promotes then
    raise exception 'An automatic change only goes back, and % comes after %.', change_stage.stage, current.stage
      using errcode = 'TU024', detail = json_build_object('switchover', current.name, 'from', current.stage, 'to', change_stage.stage)::text;
  end if;
  select 0::bigint as events, null::timestamptz as newest into undeclared;
  if promotes then
    select u.events, u.newest into undeclared from turnout.undeclared_publishers(current.source, current.name) u;
  end if;
  select * into latest from turnout.switchover_check c
    where c.source = current.source and c.switchover = current.name and c.for_stage = change_stage.stage and c.epoch = current.epoch
    order by c.id desc limit 1;
  if latest.at < clock_timestamp() - interval '10 minutes' then
    latest := null;
  end if;
  if change_stage.stage = 'done' or current.endpoint = 'bridged' then
    select count(*) into owed from turnout.rpc_delivery d where d.source = current.source and d.switchover = current.name;
  end if;

  for problem in
    select p.code, p.forceable
    from turnout.stage_problems(current.stage, current.percent, current.endpoint, current.ordering, current.since is not null,
                                change_stage.stage, share, change_stage.reason, undeclared.events, latest.verdict, owed) p
    order by p.place
  loop
    if problem.forceable and force then
      forced := forced || problem.code;
    else
      told := told || turnout.stage_problem(problem.code, current, change_stage.stage, change_stage.percent,
        jsonb_build_object('events', undeclared.events, 'newest', undeclared.newest, 'verdict', latest.verdict,
                           'findings', latest.findings, 'owed', owed));
    end if;
  end loop;
  -- Calls that are owed now may be answered in a moment, so nothing is refused for them alone before they were waited for.
  if jsonb_array_length(told) > 0 and not (jsonb_array_length(told) = 1 and told -> 0 ->> 'sqlState' = 'TU021') then
    raise exception '%', (select string_agg(t ->> 'message', ' ' order by n) from jsonb_array_elements(told) with ordinality as x (t, n))
      using errcode = told -> 0 ->> 'sqlState',
            detail = ((told -> 0 -> 'details') || jsonb_build_object('problems', told))::text;
  end if;

  if change_stage.stage = 'done'
     or (change_stage.stage = 'event' and current.endpoint = 'bridged' and current.ordering = 'key') then
    perform turnout.close_calls(current.source, current.name);
  elsif change_stage.stage = 'rpc' then
    -- Only where they were deleted on the way here.
    insert into turnout.rpc_open (source, switchover, stripe)
      select current.source, current.name, n from generate_series(0, 15) n on conflict do nothing;
  end if;
  update turnout.switchover s
    set stage = change_stage.stage, percent = coalesce(share, 0), epoch = s.epoch + 1
    where s.source = current.source and s.name = current.name;
  insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, forced, automatic, detail)
    values (current.source, current.name, current.epoch + 1, current.stage, change_stage.stage, coalesce(share, 0), change_stage.reason,
            cardinality(forced) > 0, automatic,
            nullif(coalesce(change_stage.detail, '{}')
                     || case when cardinality(forced) > 0 then jsonb_build_object('forced', forced) else '{}' end, '{}'));
  return current.epoch + 1;
end
$$;

CREATE FUNCTION turnout.check_begun(effect jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  if effect ->> 'xid' is distinct from pg_current_xact_id()::text then
    raise exception 'The effect % was not begun in this transaction.', effect ->> 'effectKey' using errcode = 'TU031';
  end if;
end
$$;

CREATE FUNCTION turnout.close_calls(source text, name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  deadline timestamptz := clock_timestamp() + interval '3 seconds';
  before text := current_setting('lock_timeout');
  next_stripe smallint;
  owed bigint;
  oldest text;
begin
  -- With a snapshot of before the wait, calls that were committed meanwhile would not be seen.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'This stage change is made in a transaction that is read committed, not %.', current_setting('transaction_isolation')
      using errcode = 'invalid_transaction_state';
  end if;
  begin
    for next_stripe in
      select o.stripe from turnout.rpc_open o where o.source = close_calls.source and o.switchover = close_calls.name order by o.stripe
    loop
      perform set_config('lock_timeout', greatest(1, (extract(epoch from deadline - clock_timestamp()) * 1000)::integer) || 'ms', true);
      perform from turnout.rpc_open o
        where o.source = close_calls.source and o.switchover = close_calls.name and o.stripe = next_stripe for update;
    end loop;
  exception when lock_not_available then
    raise exception 'Transactions that publish calls of switchover % are still open.', close_calls.name
      using errcode = 'TU023', detail = json_build_object('switchover', close_calls.name)::text;
  end;
  perform set_config('lock_timeout', before, true);
  loop
    select count(*), min(d.effect_key) into owed, oldest
      from turnout.rpc_delivery d where d.source = close_calls.source and d.switchover = close_calls.name;
    exit when owed = 0;
    if clock_timestamp() >= deadline then
      raise exception 'Switchover % owes % calls.', close_calls.name, owed
        using errcode = 'TU021', detail = json_build_object('switchover', close_calls.name, 'owed', owed, 'effectKey', oldest)::text;
    end if;
    perform pg_sleep(0.01);
  end loop;
  delete from turnout.rpc_open o where o.source = close_calls.source and o.switchover = close_calls.name;
end
$$;

CREATE FUNCTION turnout.closed_outbox_partitions() RETURNS TABLE(name text, lower_seq bigint, upper_seq bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select b.name, b.bound[1]::bigint, b.bound[2]::bigint
  from (select c.relname::text as name, regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''?(\d+)''?\) TO \(''?(\d+)''?\)') as bound
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'turnout.outbox'::regclass) b
  where b.bound[2]::bigint <= (select coalesce(s.last_value, 0) from pg_sequences s where s.schemaname = 'turnout' and s.sequencename = 'outbox_seq_seq')
  order by b.bound[2]::bigint
$$;

CREATE FUNCTION turnout.consumed_snapshot(source text, topic text, consumed jsonb) RETURNS pg_snapshot
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  oldest integer;
  below bigint;
  above bigint;
  middle bigint;
  probe record;
  done pg_snapshot := '1:1:';
begin
  select coalesce(min(coalesce(c.generation, 1)), 1) into oldest
    from turnout.topic t
    cross join lateral generate_series(0, t.partitions - 1) as p (partition)
    left join lateral (
      select max(c.generation) as generation
      from jsonb_to_recordset(consumed_snapshot.consumed) as c (topic text, partition integer, source text, generation integer)
      where c.source = consumed_snapshot.source and c.topic = t.name and c.partition = p.partition) c on true
    where t.name = consumed_snapshot.topic;
  -- Before a copy into this cluster, snapshots were those of another one: rebase_relay.
  select coalesce(max(t.tick) filter (where t.relay = 'rebase' and t.hi::text = '1:1:'), min(t.tick) - 1), max(t.tick) + 1 into below, above
    from turnout.relay_tick t where t.shard = 0;
  while above - below > 1 loop
    middle := below + (above - below) / 2;
    select t.tick, t.lo, t.numbers, n.generation into probe
      from turnout.relay_tick t
      cross join lateral (select max(substr(k, length(consumed_snapshot.source) + 2)::integer) as generation
                            from jsonb_object_keys(t.numbers) k where starts_with(k, consumed_snapshot.source || '/')) n
      where t.shard = 0 and t.tick > below and t.tick <= middle and n.generation is not null
      order by t.tick desc limit 1;
    if not found then
      below := middle;
    elsif probe.generation > oldest or (probe.generation = oldest and exists (
        select from jsonb_array_elements_text(probe.numbers -> (consumed_snapshot.source || '/' || oldest) -> consumed_snapshot.topic)
               with ordinality as n (count, place)
        where n.count::bigint > coalesce((
          select max(case when c.generation > oldest then n.count::bigint else c.sequence end)
          from jsonb_to_recordset(consumed_snapshot.consumed) as c (topic text, partition integer, source text, generation integer, sequence bigint)
          where c.source = consumed_snapshot.source and c.topic = consumed_snapshot.topic and c.partition = n.place - 1
            and c.generation >= oldest), 0))) then
      above := probe.tick;
    else
      below := middle;
      done := probe.lo;
    end if;
  end loop;
  return done;
end
$$;

CREATE FUNCTION turnout.count_sequence(known_generation integer, known_base bigint, known_last bigint, generation integer, number bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
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

CREATE FUNCTION turnout.decide_effect(event_id uuid, request_hash text, generation integer, number bigint, too_old boolean, known_outcome text, known_event_id uuid, known_request_hash text, known_lease_over boolean, gate_generation integer, gate_number bigint, gate_halted text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
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

CREATE FUNCTION turnout.delete_old_published_ids(older_than interval, most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  deleted integer;
begin
  delete from turnout.published_id k
    where k.id in (
      select o.id from turnout.published_id o
      where o.claimed_at < clock_timestamp() - delete_old_published_ids.older_than
        and not exists (select from jsonb_array_elements(o.stamps) s join turnout.rpc_delivery d on d.effect_key = s ->> 'effectKey')
      order by o.claimed_at limit delete_old_published_ids.most);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

CREATE FUNCTION turnout.delete_old_replies(older_than interval, most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  deleted integer;
begin
  delete from turnout.reply r
    where r.effect_key in (select o.effect_key from turnout.reply o
                            where o.at < clock_timestamp() - delete_old_replies.older_than
                            order by o.at limit delete_old_replies.most);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

CREATE FUNCTION turnout.delete_old_shadow(consumer text, deliveries interval, decisions interval, most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
#variable_conflict use_column
declare
  gone integer;
  total integer := 0;
begin
  delete from turnout.shadow_call d where d.ctid = any (array(
    select c.ctid from turnout.shadow_call c
     where c.consumer = delete_old_shadow.consumer and c.called_at < clock_timestamp() - delete_old_shadow.deliveries
     order by c.called_at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_arrival d where d.ctid = any (array(
    select a.ctid from turnout.shadow_arrival a
     where a.consumer = delete_old_shadow.consumer and a.arrived_at < clock_timestamp() - delete_old_shadow.deliveries
     order by a.arrived_at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_count d where d.ctid = any (array(
    select c.ctid from turnout.shadow_count c
     where c.consumer = delete_old_shadow.consumer and c.minute < clock_timestamp() - delete_old_shadow.decisions
     order by c.minute limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_mismatch d where d.ctid = any (array(
    select m.ctid from turnout.shadow_mismatch m
     where m.consumer = delete_old_shadow.consumer and m.minute < clock_timestamp() - delete_old_shadow.decisions
     order by m.minute limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_example d where d.ctid = any (array(
    select e.ctid from turnout.shadow_example e
     where e.consumer = delete_old_shadow.consumer and e.at < clock_timestamp() - delete_old_shadow.decisions
     order by e.at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  return total + gone;
end
$$;

CREATE FUNCTION turnout.delete_old_stamps(lower_seq bigint, upper_seq bigint, most integer DEFAULT 5000) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  with gone as (
    delete from turnout.stamp s
    where s.ctid = any (array(select o.ctid from turnout.stamp o
                              where o.seq >= delete_old_stamps.lower_seq and o.seq < delete_old_stamps.upper_seq limit most)) returning 1
  )
  select count(*)::integer from gone
$$;

CREATE FUNCTION turnout.delete_old_ticks(older_than interval, most integer DEFAULT 5000) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  with old as (
    select t.shard, t.tick from turnout.relay_tick t
    where t.tick < (select max(n.tick) - 1000 from turnout.relay_tick n where n.shard = t.shard) and t.at < clock_timestamp() - older_than
    order by t.shard, t.tick limit most
  ), gone as (
    delete from turnout.relay_tick t using old where t.shard = old.shard and t.tick = old.tick returning 1
  )
  select count(*)::integer from gone
$$;

CREATE FUNCTION turnout.drop_empty_outbox_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $$
declare
  empty_names text[] := '{}';
  name text;
  filled boolean;
begin
  -- As above.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'The outbox is kept in transactions that are read committed, not %.', current_setting('transaction_isolation');
  end if;
  for name in select p.name from turnout.closed_outbox_partitions() p loop
    execute format('select exists (select from turnout.%I)', name) into filled;
    if not filled then
      empty_names := empty_names || name;
    end if;
  end loop;
  if cardinality(empty_names) = 0 then
    return 0;
  end if;
  begin
    lock table turnout.outbox in access exclusive mode;
    foreach name in array empty_names loop
      -- Again, now that nobody can write: a row may have come in late.
      execute format('select exists (select from turnout.%I)', name) into filled;
      if filled then
        continue;
      end if;
      execute format('alter table turnout.outbox detach partition turnout.%I', name);
      execute format('drop table turnout.%I', name);
    end loop;
  exception when lock_not_available then
    return 0;
  end;
  return cardinality(empty_names);
end
$$;

CREATE FUNCTION turnout.drop_inbox_partitions(older_than interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $$
declare
  name text;
  pending boolean;
begin
  if older_than < interval '1 day' then
    raise exception 'Outcomes are kept for a day at least, not %.', older_than;
  end if;
  for name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'turnout.inbox'::regclass
      and to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' + interval '7 days' < clock_timestamp() - older_than
    order by c.relname
  loop
    -- First without the lock: what stays disturbs nobody.
    execute format('select exists (select from turnout.%I where outcome in (''running'', ''queued''))', name) into pending;
    continue when pending;
    begin
      execute format('lock table turnout.inbox, turnout.%I in access exclusive mode', name);
      -- And again, by the index: an intent may have come meanwhile.
      execute format('select exists (select from turnout.%I where outcome in (''running'', ''queued''))', name) into pending;
      if not pending then
        execute format('alter table turnout.inbox detach partition turnout.%I', name);
        execute format('drop table turnout.%I', name);
      end if;
    exception when lock_not_available then
      return 0;
    end;
    return case when pending then 0 else 1 end;
  end loop;
  return 0;
end
$$;

CREATE FUNCTION turnout.empty_outbox_partition(name text, retention interval) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
#variable_conflict use_column
declare
  range record;
  need text;
begin
  -- With a snapshot of before the lock, what was committed while it was waited for would be lost.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'The outbox is kept in transactions that are read committed, not %.', current_setting('transaction_isolation');
  end if;
  select p.lower_seq, p.upper_seq into range from turnout.closed_outbox_partitions() p where p.name = empty_outbox_partition.name;
  if not found then
    raise exception '% is not a closed partition of turnout.outbox.', empty_outbox_partition.name;
  end if;
  need := turnout.need_of_outbox_partition(empty_outbox_partition.name, range.lower_seq, range.upper_seq, retention);
  if need is not null then
    return need;
  end if;
  begin
    execute format('lock table only turnout.%I in access exclusive mode', empty_outbox_partition.name);
  exception when lock_not_available then
    return 'busy';
  end;
  need := turnout.need_of_outbox_partition(empty_outbox_partition.name, range.lower_seq, range.upper_seq, retention);
  if need is not null then
    return need;
  end if;
  execute format('truncate only turnout.%I', empty_outbox_partition.name);
  return 'emptied';
end
$$;

CREATE FUNCTION turnout.enter_effect(effect jsonb, retention interval, wait boolean) RETURNS TABLE(decision text, answer text, outcome text, last_generation integer, last_number bigint, halted text, attempts integer)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.enter_inbox(consumer text, effect_key text, occurred_at timestamp with time zone, source text, topic text, key text, ordered boolean, wait boolean, retention_ms bigint, lease_ms bigint) RETURNS TABLE(locked boolean, too_old boolean, gate_generation integer, gate_number text, gate_halted text, known_outcome text, known_event_id text, known_request_hash text, known_answer text, known_attempts integer, known_lease_over boolean, known_failed boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '1s'
    AS $$
#variable_conflict use_column
declare
  lock_number bigint := hashtextextended(
    case when ordered then concat_ws(e'\x1f', 'key', enter_inbox.consumer, enter_inbox.source, enter_inbox.topic, enter_inbox.key)
         else concat_ws(e'\x1f', 'effect', enter_inbox.consumer, enter_inbox.effect_key) end, 7472);
begin
  locked := pg_try_advisory_xact_lock(lock_number);
  if not locked and wait then
    begin
      perform pg_advisory_xact_lock(lock_number);
      locked := true;
    exception when lock_not_available then
    end;
  end if;
  if not locked then
    return next;
    return;
  end if;
  too_old := enter_inbox.occurred_at < clock_timestamp() - make_interval(secs => retention_ms / 1000.0);
  if ordered then
    select g.generation, g.last_number::text, g.halted into gate_generation, gate_number, gate_halted
      from turnout.gate g
      where g.consumer = enter_inbox.consumer and g.source = enter_inbox.source and g.topic = enter_inbox.topic and g.key = enter_inbox.key;
  end if;
  select i.outcome, i.event_id::text, i.request_hash, i.answer::text, i.attempts,
         i.finished_at < clock_timestamp() - make_interval(secs => lease_ms / 1000.0),
         i.outcome = 'running' and i.reason is not null
    into known_outcome, known_event_id, known_request_hash, known_answer, known_attempts, known_lease_over, known_failed
    from turnout.inbox i
    where i.consumer = enter_inbox.consumer and i.effect_key = enter_inbox.effect_key
      and i.occurred_at >= enter_inbox.occurred_at - interval '1 day' and i.occurred_at <= enter_inbox.occurred_at + interval '1 day'
    limit 1;
  return next;
end
$$;

CREATE FUNCTION turnout.finish_effect(effect jsonb, outcome text DEFAULT 'applied'::text, answer jsonb DEFAULT NULL::jsonb, reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.forget_proxied_calls(source text, proxy text, older_than interval, most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  deleted integer;
begin
  delete from turnout.proxied_call p
    where (p.source, p.proxy, p.key_hash) in (
      select o.source, o.proxy, o.key_hash from turnout.proxied_call o
      where o.source = forget_proxied_calls.source and o.proxy = forget_proxied_calls.proxy
        and o.at < clock_timestamp() - forget_proxied_calls.older_than
        and (o.settled_at is null or o.settled_at < clock_timestamp() - forget_proxied_calls.older_than)
        and (o.route = 'event' or o.outcome is not null)
        and not exists (select from turnout.rpc_delivery d where d.effect_key = o.effect_key)
      order by o.at limit forget_proxied_calls.most);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

CREATE FUNCTION turnout.halt_key(consumer text, source text, topic text, key text, reason text, detail jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
  update turnout.gate g set halted = halt_key.reason
    where g.consumer = halt_key.consumer and g.source = halt_key.source and g.topic = halt_key.topic and g.key = halt_key.key;
  insert into turnout.alarm (consumer, kind, detail) values (halt_key.consumer, 'unknown-repeat', halt_key.detail);
end
$$;

CREATE TABLE turnout.held (
    id bigint NOT NULL,
    consumer text NOT NULL,
    effect_key text NOT NULL,
    reason text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key text,
    generation integer,
    number bigint,
    message jsonb NOT NULL,
    error text,
    attempts integer DEFAULT 0 NOT NULL,
    held_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_type text GENERATED ALWAYS AS ((message #>> '{headers,ce_type}'::text[])) STORED,
    CONSTRAINT held_reason_check CHECK ((reason = ANY (ARRAY['early'::text, 'parked'::text, 'behind'::text])))
);

CREATE FUNCTION turnout.held_that_can_go_on(consumer text) RETURNS SETOF turnout.held
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.hold_event(consumer text, effect_key text, occurred_at timestamp with time zone, reason text, source text, topic text, partition integer, "offset" bigint, key text, generation integer, number bigint, message jsonb, error text, attempts integer) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.hold_number(consumer text, effect_key text, occurred_at timestamp with time zone, source text, topic text, key text, generation integer, number bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.is_reserved_header(name text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select lower(name) in ('ce_specversion', 'ce_id', 'ce_type', 'ce_source', 'ce_time', 'ce_partitionkey', 'ce_sequence',
                         'content-type', 'turnout-version', 'turnout-seq', 'turnout-routes', 'turnout-refused')
$$;

CREATE FUNCTION turnout.lock_keys(topic text, keys text[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  number bigint;
begin
  if cardinality(keys) > 1000 then
    raise exception 'One transaction asked for the locks of % keys.', cardinality(keys)
      using errcode = 'TU006', detail = json_build_object('keys', cardinality(keys), 'limit', 1000)::text;
  end if;
  for number in
    select distinct hashtextextended(lock_keys.topic || e'\x1f' || k, 7471) as n from unnest(keys) k order by n
  loop
    perform pg_advisory_xact_lock(number);
  end loop;
end
$$;

CREATE FUNCTION turnout.make_inbox_partition(at timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  lower timestamptz := date_trunc('week', at, 'UTC');
  upper timestamptz := date_trunc('week', at, 'UTC') + interval '7 days';
  name text := 'inbox_' || to_char(date_trunc('week', at, 'UTC') at time zone 'UTC', 'YYYYMMDD');
begin
  if to_regclass('turnout.' || name) is not null then
    return;
  end if;
  perform pg_advisory_xact_lock(hashtextextended('turnout.make_inbox_partition', 0));
  if to_regclass('turnout.' || name) is not null then
    return;
  end if;
  execute format('create table turnout.%I (like turnout.inbox including defaults including constraints including storage including compression)', name);
  execute format('alter table turnout.%I add primary key (consumer, effect_key, occurred_at)', name);
  execute format('alter table turnout.inbox attach partition turnout.%I for values from (%L) to (%L)', name, lower, upper);
end
$$;

CREATE FUNCTION turnout.make_outbox_partitions(ahead integer DEFAULT 8, span bigint DEFAULT 1000000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
declare
  drawn bigint;
  upper bigint;
  needed bigint;
  name text;
begin
  perform pg_advisory_xact_lock(hashtextextended('turnout.make_outbox_partitions', 0));
  select coalesce(last_value, 0) into drawn
    from pg_sequences
    where schemaname = 'turnout' and sequencename = 'outbox_seq_seq';
  drawn := coalesce(drawn, 0);
  select coalesce(max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?(\d+)''?\)'))[1]::bigint), 0)
    into upper
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'turnout.outbox'::regclass;
  needed := (drawn / span + 1 + ahead) * span;
  while upper < needed loop
    name := format('outbox_%s', lpad((upper / span)::text, 8, '0'));
    execute format('create table turnout.%I (like turnout.outbox including defaults including constraints including storage including compression)', name);
    execute format('alter table turnout.%I add constraint %I check (seq >= %s and seq < %s)',
                   name, name || '_range', greatest(upper, 0), upper + span);
    execute format('create index %I on turnout.%I (xid)', name || '_xid', name);
    execute format('alter table turnout.outbox attach partition turnout.%I for values from (%s) to (%s)',
                   name, upper, upper + span);
    execute format('alter table turnout.%I drop constraint %I', name, name || '_range');
    upper := upper + span;
  end loop;
  return upper - drawn;
end
$$;

CREATE FUNCTION turnout.missing_events(consumer text, source text, topic text, key text, generation integer, after_number bigint, below_number bigint, most integer) RETURNS TABLE(number bigint, id uuid, source text, topic text, aggregateid text, type text, version integer, payload json, headers jsonb, occurred_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $_$
  select s.number, o.id, o.source, o.topic, o.aggregateid, o.type, o.version, o.payload, o.headers, o.occurred_at
  from turnout.stamp s
  join turnout.outbox o on o.xid = s.xid and o.seq = s.seq
  where s.consumer = $1 and s.source = $2 and s.topic = $3 and s.key = $4 and s.generation = $5
    and s.number > after_number and s.number < below_number
  order by s.number
  limit most
$_$;

CREATE FUNCTION turnout.need_of_outbox_partition(name text, lower_seq bigint, upper_seq bigint, retention interval) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
  newest_at timestamptz;
  finished pg_snapshot;
  pending boolean;
begin
  execute format('select o.occurred_at from turnout.%I o order by o.xid desc limit 1', need_of_outbox_partition.name) into newest_at;
  if newest_at is null then
    return 'empty';
  end if;
  if newest_at > clock_timestamp() - retention then
    return 'young';
  end if;
  -- Its rows must be visible in the `lo` of every shard's newest tick, which is the oldest that may still be replayed.
  if not exists (select from turnout.relay_tick) then
    return 'unpublished';
  end if;
  for finished in select distinct on (t.shard) t.lo from turnout.relay_tick t order by t.shard, t.tick desc loop
    execute format('select exists (select from turnout.%I o where o.xid >= pg_snapshot_xmin($1) and not pg_visible_in_snapshot(o.xid, $1))',
                   need_of_outbox_partition.name) into pending using finished;
    if pending then
      return 'unpublished';
    end if;
  end loop;
  if exists (select from turnout.rpc_delivery d
             where d.seq >= need_of_outbox_partition.lower_seq and d.seq < need_of_outbox_partition.upper_seq) then
    return 'owed';
  end if;
  return null;
end
$_$;

CREATE FUNCTION turnout.next_held(consumer text) RETURNS TABLE(effect jsonb, record jsonb)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.note_spare_number(consumer text, effect_key text, source text, topic text, key text, generation integer, number bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.park_effect(effect jsonb, error text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
begin
  perform turnout.check_begun(effect);
  if effect -> 'message' is null then
    raise exception 'Only events are parked; a call is answered without an outcome and made again.' using errcode = 'invalid_parameter_value';
  end if;
  perform turnout.set_aside(effect, 'parked', error, (effect ->> 'attempts')::integer);
end
$$;

CREATE FUNCTION turnout.pass_number(consumer text, source text, topic text, key text, generation integer, number bigint, reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '5s'
    AS $$
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

CREATE FUNCTION turnout.pass_spare_numbers(consumer text, source text, topic text, key text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.percent_decode(encoded text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.plan_event(before_since boolean, sequence text, route text, in_switchover boolean, handler text, is_refused boolean) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
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

CREATE FUNCTION turnout.publish(source text, type text, version integer, key text, data json, headers jsonb DEFAULT NULL::jsonb, switchovers text[] DEFAULT '{}'::text[], id uuid DEFAULT NULL::uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  event constant json := json_build_array(json_build_object('id', publish.id, 'type', publish.type, 'version', publish.version,
                                                            'key', publish.key, 'data', publish.data, 'headers', publish.headers));
begin
  if publish.id is null then
    return (select p.id from turnout.publish_events(publish.source, event, publish.switchovers) p);
  end if;
  return (select p.id from turnout.publish_once(publish.source, event, publish.switchovers) p);
end
$$;

CREATE FUNCTION turnout.publish_events(source text, events json, switchovers text[] DEFAULT '{}'::text[], deliver boolean DEFAULT false) RETURNS TABLE(seq text, id uuid, type text, version integer, topic text, key text, occurred_at timestamp with time zone, routes text, stamps jsonb)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  is_source boolean;
  bad_place bigint;
  repeated_id boolean;
  lock_numbers bigint[];
  lock_number bigint;
  declares boolean;
  has_done boolean;
  is_undue boolean;
  undue record;
  counts boolean;
  this_xid xid8;
  one record;
  calls turnout.switchover[];
  one_seq bigint;
begin
  if publish_events.events is null then
    raise exception 'There are no events.' using errcode = 'TU009', detail = '{"path": "events"}';
  end if;

  -- All checks, then all locks, before the first number is drawn.
  select exists (select from turnout.source s where s.name = publish_events.source),
         min(e.place) filter (where r.topic is null
                                 or e.data is null
                                 or octet_length(e.data::text) + coalesce(octet_length(nullif(e.headers, 'null')::text), 0) > t.max_bytes
                                 or (r.ordering = 'key' and e.key is null) or e.key = '' or octet_length(e.key) > 1000
                                 or (e.headers is not null and turnout.bad_header(e.headers) is not null)),
         count(distinct e.id) < count(e.id),
         array_agg(distinct hashtextextended(r.topic || e'\x1f' || e.key, 7471)
                   order by hashtextextended(r.topic || e'\x1f' || e.key, 7471)) filter (where r.ordering = 'key'),
         bool_or(cardinality(coalesce(e.switchovers, publish_events.switchovers)) > 0),
         exists (select from turnout.switchover s where s.source = publish_events.source and s.stage = 'done')
    into is_source, bad_place, repeated_id, lock_numbers, declares, has_done
    from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
      with ordinality as e (id, type, version, key, data, headers, switchovers, place)
    left join turnout.event_type r on r.name = e.type and r.version = e.version
    left join turnout.topic t on t.name = r.topic;

  if not is_source then
    raise exception 'Source % is not registered.', publish_events.source
      using errcode = 'TU001', detail = json_build_object('source', publish_events.source)::text;
  end if;
  if bad_place is not null then
    perform turnout.refuse_event(publish_events.events -> (bad_place - 1)::integer, (bad_place - 1)::integer);
  end if;
  if repeated_id then
    raise exception 'Two of the events have the same id.' using errcode = 'TU009', detail = '{"path": "id"}';
  end if;
  if cardinality(lock_numbers) > 1000 then
    raise exception 'One transaction asked for the locks of % keys.', cardinality(lock_numbers)
      using errcode = 'TU006', detail = json_build_object('keys', cardinality(lock_numbers), 'limit', 1000)::text;
  end if;
  if has_done then
    -- What is done stays declared, whatever the code says: it may be deleted, and the consumer would only observe an event without a route.
    select json_agg(json_build_object('id', e.id, 'type', e.type, 'version', e.version, 'key', e.key, 'data', e.data, 'headers', e.headers,
                                      'switchovers', array(select d.name from unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
                                                           union
                                                           select s.name from turnout.switchover s
                                                             where s.source = publish_events.source and s.stage = 'done' and e.type = any (s.event_types)))
                    order by e.place)
      into publish_events.events
      from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
        with ordinality as e (id, type, version, key, data, headers, switchovers, place);
    declares := exists (select from json_to_recordset(publish_events.events) as e (switchovers text[]) where cardinality(e.switchovers) > 0);
  end if;
  if declares then
    select bool_or(s.name is null or not e.type = any (s.event_types)), bool_or(s.ordering = 'key') into is_undue, counts
      from json_to_recordset(publish_events.events) as e (type text, switchovers text[])
      cross join unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
      left join turnout.switchover s on s.source = publish_events.source and s.name = d.name;
    if is_undue then
      select d.name as switchover, e.type, s.name is not null as known into undue
        from rows from (json_to_recordset(publish_events.events) as (type text, switchovers text[])) with ordinality as e (type, switchovers, place)
        cross join unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
        left join turnout.switchover s on s.source = publish_events.source and s.name = d.name
        where s.name is null or not e.type = any (s.event_types)
        order by e.place limit 1;
      if undue.known then
        raise exception 'Switchover % does not have the event type %.', undue.switchover, undue.type
          using errcode = 'TU018', detail = json_build_object('switchover', undue.switchover, 'type', undue.type)::text;
      end if;
      raise exception 'Switchover % does not exist in source %.', undue.switchover, publish_events.source
        using errcode = 'TU002', detail = json_build_object('switchover', undue.switchover, 'source', publish_events.source)::text;
    end if;
  end if;

  -- In one agreed order, so that two transactions that publish the same keys can't wait for each other.
  if lock_numbers is not null then
    foreach lock_number in array lock_numbers loop
      perform pg_advisory_xact_lock(lock_number);
    end loop;
  end if;

  this_xid := pg_current_xact_id();

  if declares is not true then
    return query
      with written as (
        insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, headers)
        select this_xid, coalesce(e.id, gen_random_uuid()), publish_events.source, r.topic, r.aggregate, e.key, e.type, e.version,
               e.data, nullif(e.headers, 'null')
        from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb))
          with ordinality as e (id, type, version, key, data, headers, place)
        join turnout.event_type r on r.name = e.type and r.version = e.version
        order by e.place
        returning o.seq, o.id, o.type, o.version, o.topic, o.aggregateid, o.occurred_at
      )
      select w.seq::text, w.id, w.type, w.version, w.topic, w.aggregateid, w.occurred_at, null::text, '[]'::jsonb
      from written w order by w.seq;
    return;
  end if;

  -- The stage is read after the locks were taken: who had to wait for a key sees what was changed meanwhile.
  if not counts and json_array_length(publish_events.events) = 1 then
    select coalesce(e.id, gen_random_uuid()) as id, e.key, e.data, nullif(e.headers, 'null') as headers,
           coalesce(e.switchovers, publish_events.switchovers) as switchovers, r.name as type, r.version, r.topic, r.aggregate
      into one
      from json_to_recordset(publish_events.events) as e (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[])
      join turnout.event_type r on r.name = e.type and r.version = e.version;
    select string_agg(p.consumer || '=' || p.route || ';epoch=' || p.epoch || case when p.shadow then ';shadow=1' else '' end, ', ' order by p.consumer),
           jsonb_agg(jsonb_build_object('switchover', p.name, 'consumer', p.consumer, 'route', p.route, 'epoch', p.epoch,
                                        'effectKey', p.consumer || '.' || one.id)
                       || case when p.shadow then '{"shadow": true}'::jsonb else '{}'::jsonb end order by p.consumer),
           array_agg(p.s) filter (where p.route = 'rpc')
      into routes, stamps, calls
      from (select s, s.name, s.consumer, s.epoch, s.stage = 'shadow' as shadow,
                   turnout.route_for(s.stage, s.percent, s.salt, coalesce(one.key, one.id::text)) as route
              from turnout.switchover s
              where s.source = publish_events.source and s.name = any (one.switchovers)
              -- The route is worked out once.
              offset 0) p;
    insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, routes, headers)
      values (this_xid, one.id, publish_events.source, one.topic, one.aggregate, one.key, one.type, one.version, one.data,
              publish_events.routes, one.headers)
      returning o.seq, o.occurred_at into one_seq, occurred_at;
    if calls is not null then
      insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key, epoch, shadow, due_at)
        select c.consumer || '.' || one.id, publish_events.source, c.name, one_seq % 16, c.consumer, one.id, one_seq, this_xid, one.topic, one.key,
               c.epoch, c.stage = 'shadow', case when publish_events.deliver then null else clock_timestamp() end
        from unnest(calls) c;
    end if;
    seq := one_seq;
    id := one.id;
    type := one.type;
    version := one.version;
    topic := one.topic;
    key := one.key;
    return next;
    return;
  end if;

  return query
    with given as materialized (
      select e.place, coalesce(e.id, gen_random_uuid()) as id, e.type, e.version, e.key, e.data, nullif(e.headers, 'null') as headers,
             coalesce(e.switchovers, publish_events.switchovers) as switchovers, r.topic, r.aggregate
      from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
        with ordinality as e (id, type, version, key, data, headers, switchovers, place)
      join turnout.event_type r on r.name = e.type and r.version = e.version
    ), planned as materialized (
      select g.place, g.id, g.topic, g.key, s.name as switchover, s.consumer, s.ordering, s.epoch, s.generation,
             s.stage = 'shadow' as shadow, turnout.route_for(s.stage, s.percent, s.salt, coalesce(g.key, g.id::text)) as route
      from given g
      join turnout.switchover s
        on s.source = publish_events.source and s.name = any (g.switchovers)
    ), counted as (
      -- One row a key, however many of its events are published here: the row can be changed only once in a statement.
      insert into turnout.key_number as k (source, consumer, topic, key, generation, number)
        select publish_events.source, p.consumer, p.topic, p.key, p.generation, count(*)
        from planned p where p.ordering = 'key'
        group by p.consumer, p.topic, p.key, p.generation
        order by p.consumer, p.topic, p.key
        on conflict (source, consumer, topic, key) do update
          set number = excluded.number + case when k.generation = excluded.generation then k.number else 0 end,
              generation = excluded.generation
        returning k.consumer, k.topic, k.key, k.generation, k.number
    ), stamped as materialized (
      select p.place, p.id, p.topic, p.key, p.switchover, p.consumer, p.route, p.epoch, p.shadow, c.generation,
             c.number - count(*) over (partition by p.consumer, p.topic, p.key)
                      + row_number() over (partition by p.consumer, p.topic, p.key order by p.place) as number
      from planned p
      left join counted c on p.ordering = 'key' and c.consumer = p.consumer and c.topic = p.topic and c.key = p.key
    ), routed as materialized (
      select s.place,
             string_agg(s.consumer || '=' || s.route || ';epoch=' || s.epoch || case when s.shadow then ';shadow=1' else '' end
                          || coalesce(';generation=' || s.generation || ';number=' || s.number, ''), ', ' order by s.consumer) as routes,
             jsonb_agg(jsonb_build_object('switchover', s.switchover, 'consumer', s.consumer, 'route', s.route, 'epoch', s.epoch,
                                          'effectKey', s.consumer || '.' || s.id)
                         || case when s.shadow then '{"shadow": true}'::jsonb else '{}'::jsonb end
                         || case when s.number is null then '{}'::jsonb
                                 else jsonb_build_object('generation', s.generation, 'number', s.number) end order by s.consumer) as stamps
      from stamped s group by s.place
    ), written as (
      insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, routes, headers)
        select this_xid, g.id, publish_events.source, g.topic, g.aggregate, g.key, g.type, g.version, g.data, r.routes, g.headers
        from given g left join routed r on r.place = g.place
        order by g.place
        returning o.seq, o.id, o.type, o.version, o.topic, o.aggregateid, o.occurred_at, o.routes
    ), remembered as (
      insert into turnout.stamp (source, consumer, topic, key, generation, number, seq, xid, event_id, switchover, route, epoch)
        select publish_events.source, s.consumer, s.topic, s.key, s.generation, s.number, w.seq, this_xid, s.id,
               s.switchover, s.route, s.epoch
        from written w join stamped s on s.id = w.id
        where s.number is not null
    ), owed as (
      insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key,
                                        generation, number, epoch, shadow, due_at)
        select s.consumer || '.' || s.id, publish_events.source, s.switchover, w.seq % 16, s.consumer, s.id, w.seq, this_xid, s.topic, s.key,
               s.generation, s.number, s.epoch, s.shadow, case when deliver then null else clock_timestamp() end
        from written w join stamped s on s.id = w.id
        where s.route = 'rpc'
    )
    select w.seq::text, w.id, w.type, w.version, w.topic, w.aggregateid, w.occurred_at, w.routes, coalesce(r.stamps, '[]')
    from written w join given g on g.id = w.id left join routed r on r.place = g.place
    order by w.seq;
end
$$;

CREATE FUNCTION turnout.publish_once(source text, events json, switchovers text[] DEFAULT '{}'::text[], deliver boolean DEFAULT false) RETURNS TABLE(place bigint, seq text, id uuid, type text, version integer, topic text, key text, occurred_at timestamp with time zone, routes text, stamps jsonb, is_known boolean, data json, headers jsonb)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  ids uuid[];
  lock_numbers bigint[];
  lock_number bigint;
  claimed uuid[];
  reused record;
  fresh json;
  places bigint[];
begin
  select array_agg(distinct e.id) filter (where e.id is not null),
         array_agg(distinct hashtextextended(r.topic || e'\x1f' || e.key, 7471)
                   order by hashtextextended(r.topic || e'\x1f' || e.key, 7471)) filter (where r.ordering = 'key')
    into ids, lock_numbers
    from json_to_recordset(publish_once.events) as e (id uuid, type text, version integer, key text)
    left join turnout.event_type r on r.name = e.type and r.version = e.version;
  if cardinality(ids) < (select count(e.id) from json_to_recordset(publish_once.events) as e (id uuid)) then
    raise exception 'Two of the events have the same id.' using errcode = 'TU009', detail = '{"path": "id"}';
  end if;

  -- First the keys, as in publish_events: a transaction that has published one of them before can then not wait here for one that
  -- waits for it. Too many are refused there.
  if cardinality(lock_numbers) <= 1000 then
    foreach lock_number in array lock_numbers loop
      perform pg_advisory_xact_lock(lock_number);
    end loop;
  end if;

  -- In one order. Who comes second waits here; after a rollback of the first the id is free.
  with claim as (
    insert into turnout.published_id as p (id) select i from unnest(ids) i order by i
      on conflict (id) do nothing
      returning p.id
  )
  select coalesce(array_agg(c.id), '{}') into claimed from claim c;
  if (select count(*) from turnout.published_id k where k.id = any (ids)) < cardinality(ids) then
    -- Too old, and deleted between the two statements.
    raise exception 'The id of an event was forgotten just now.' using errcode = 'serialization_failure';
  end if;

  select k.id, e.place, case when k.source <> publish_once.source then 'source' when k.type <> e.type then 'type' else 'key' end as what
    into reused
    from rows from (json_to_recordset(publish_once.events) as (id uuid, type text, key text)) with ordinality as e (id, type, key, place)
    join turnout.published_id k on k.id = e.id
    where k.seq is not null and (k.source <> publish_once.source or k.type is distinct from e.type or k.key is distinct from e.key)
    order by e.place limit 1;
  if found then
    raise exception 'The id % is that of an event of another %.', reused.id, reused.what
      using errcode = 'TU035', detail = json_build_object('id', reused.id, 'path', reused.what, 'index', reused.place - 1)::text;
  end if;

  select json_agg(e.event order by e.place), array_agg(e.place order by e.place) into fresh, places
    from json_array_elements(publish_once.events) with ordinality as e (event, place)
    where e.event ->> 'id' is null or (e.event ->> 'id')::uuid = any (claimed);
  if cardinality(claimed) = coalesce(cardinality(ids), 0) then
    -- As it came: what is wrong with it is said of its place.
    fresh := publish_once.events;
  end if;

  if places is not null or publish_once.events is null then
    return query
      with published as materialized (
        select p.*, row_number() over (order by p.seq::bigint) as nth
        from turnout.publish_events(publish_once.source, fresh, publish_once.switchovers, publish_once.deliver) p
      ), kept as (
        update turnout.published_id k
          set source = publish_once.source, type = p.type, version = p.version, topic = p.topic, key = p.key, seq = p.seq::bigint,
              xid = pg_current_xact_id(), occurred_at = p.occurred_at, routes = p.routes, stamps = p.stamps
          from published p where k.id = p.id and k.id = any (claimed)
      )
      select places[p.nth], p.seq, p.id, p.type, p.version, p.topic, p.key, p.occurred_at, p.routes, p.stamps, false, null::json, null::jsonb
      from published p;
  end if;
  if cardinality(claimed) < cardinality(ids) then
    return query
      select e.place, k.seq::text, k.id, k.type, k.version, k.topic, k.key, k.occurred_at, k.routes, k.stamps, true, o.payload, o.headers
      from rows from (json_to_recordset(publish_once.events) as (id uuid)) with ordinality as e (id, place)
      join turnout.published_id k on k.id = e.id
      left join turnout.outbox o on o.xid = k.xid and o.seq = k.seq
      where k.id <> all (claimed);
  end if;
end
$$;

CREATE FUNCTION turnout.ramp_bucket(salt text, key text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select (('x' || substr(md5(salt || ':' || key), 1, 8))::bit(32)::bigint % 10000)::integer $$;

CREATE FUNCTION turnout.rebase_relay(reason text) RETURNS TABLE(source text, generation integer, copied boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  newest turnout.relay_tick;
  -- Numbers from here on may be given out again, or are in use.
  unsettled xid8;
  is_copy boolean;
begin
  if coalesce(trim(rebase_relay.reason), '') = '' then
    raise exception 'A rebase needs a reason.' using errcode = 'TU012';
  end if;
  -- The lock of the relay that leads; held to the end of the transaction, so that none begins to lead meanwhile.
  if not pg_try_advisory_xact_lock(hashtext('turnout.relay'), 0) then
    raise exception 'A relay leads.' using errcode = 'TU019';
  end if;
  select * into newest from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1;
  select pg_snapshot_xmin(pg_current_snapshot()) into unsettled;
  -- The same question as the relay's when it starts to lead (src/relay/checks.ts).
  select pg_snapshot_xmax(t.hi) > pg_snapshot_xmax(pg_current_snapshot())
      or (t.hi::text <> '1:1:'
        and (t.xmin::text::bigint - pg_snapshot_xmax(t.hi)::text::bigint % 4294967296 + 4294967296) % 4294967296 >= 2147483648)
    into is_copy
    from turnout.relay_tick t where t.shard = 0 and t.tick = newest.tick;
  is_copy := coalesce(is_copy, false)
    or exists (select from turnout.outbox o where o.xid >= pg_snapshot_xmax(pg_current_snapshot()));
  if is_copy then
    with moved as (
      update turnout.outbox o set xid = pg_current_xact_id() where o.xid >= unsettled returning o.seq
    ), stamps as (
      update turnout.stamp s set xid = pg_current_xact_id() from moved m where s.seq = m.seq
    )
    update turnout.rpc_delivery d set xid = pg_current_xact_id() from moved m where d.seq = m.seq;
    update turnout.switchover s set created_xid = pg_current_xact_id() where s.created_xid >= unsettled;
    -- A closed tick before everything. Its number goes on, so that a relay that was paused can't write behind it.
    insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
      values (0, coalesce(newest.tick, 0) + 1, '1:1:', '1:1:', '{}', 'rebase');
  end if;
  insert into turnout.rebase (reason, copied) values (rebase_relay.reason, is_copy);
  return query
    update turnout.source s set generation = s.generation + 1 returning s.name, s.generation, is_copy;
end
$$;

CREATE FUNCTION turnout.recent_outcomes(consumer text, within_time interval, most integer DEFAULT 100000, source text DEFAULT NULL::text, event_types text[] DEFAULT NULL::text[]) RETURNS TABLE(path text, outcome text, effects bigint, newest timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET max_parallel_workers_per_gather TO '0'
    AS $$
  select r.path, r.outcome, count(*), max(r.finished_at)
  from (values ('rpc'), ('event')) as p (path)
  cross join lateral (
    select i.path, i.outcome, i.finished_at from turnout.inbox i
    where i.consumer = recent_outcomes.consumer and i.finished_at > statement_timestamp() - recent_outcomes.within_time
      and i.path = p.path
      and (recent_outcomes.source is null or i.source = recent_outcomes.source)
      and (recent_outcomes.event_types is null or i.event_type = any (recent_outcomes.event_types))
    limit recent_outcomes.most
  ) r
  group by r.path, r.outcome
$$;

CREATE FUNCTION turnout.record_callers(consumer text, callers jsonb, endpoints jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '1s'
    AS $$
#variable_conflict use_column
declare
  is_full boolean;
begin
  select count(*) >= 5000 into is_full
    from (select from turnout.unknown_caller u where u.consumer = record_callers.consumer limit 5000) u;
  insert into turnout.unknown_caller as u (consumer, endpoint, service, address, calls, first_at, last_at)
    select record_callers.consumer, g.endpoint, g.service, g.address, sum(g.calls), min(g.at), max(g.at)
    from (
      select c.endpoint, case when known then c.service else '(others)' end as service,
             case when known then c.address else '(others)' end as address, c.calls,
             clock_timestamp() - make_interval(secs => c."ageMs" / 1000) as at
      from jsonb_to_recordset(record_callers.callers) as c (endpoint text, service text, address text, calls bigint, "ageMs" float8)
      cross join lateral (
        select not is_full or exists (select from turnout.unknown_caller k
          where k.consumer = record_callers.consumer and k.endpoint = c.endpoint and k.service = c.service and k.address = c.address) as known
      ) k
    ) g
    group by g.endpoint, g.service, g.address
    order by g.endpoint, g.service, g.address
    on conflict (consumer, endpoint, service, address) do update
      set calls = u.calls + excluded.calls, last_at = greatest(u.last_at, excluded.last_at);
  select count(*) >= 5000 into is_full
    from (select from turnout.endpoint_seen e where e.consumer = record_callers.consumer limit 5000) e;
  insert into turnout.endpoint_seen as e (consumer, endpoint, keyed_at, unkeyed_at)
    select record_callers.consumer, s.endpoint, clock_timestamp() - make_interval(secs => s."keyedAgeMs" / 1000),
           clock_timestamp() - make_interval(secs => s."unkeyedAgeMs" / 1000)
    from jsonb_to_recordset(record_callers.endpoints) as s (endpoint text, "keyedAgeMs" float8, "unkeyedAgeMs" float8)
    where not is_full or exists (select from turnout.endpoint_seen k where k.consumer = record_callers.consumer and k.endpoint = s.endpoint)
    order by s.endpoint
    on conflict (consumer, endpoint) do update
      set keyed_at = greatest(e.keyed_at, excluded.keyed_at), unkeyed_at = greatest(e.unkeyed_at, excluded.unkeyed_at);
end
$$;

CREATE FUNCTION turnout.record_check(source text, name text, for_stage text, verdict text, findings jsonb DEFAULT '[]'::jsonb, epoch bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  recorded bigint;
begin
  insert into turnout.switchover_check (source, switchover, epoch, for_stage, verdict, findings)
    select s.source, s.name, coalesce(record_check.epoch, s.epoch), record_check.for_stage, record_check.verdict, coalesce(record_check.findings, '[]')
    from turnout.switchover s where s.source = record_check.source and s.name = record_check.name
    returning id into recorded;
  if recorded is null then
    raise exception 'Switchover % does not exist in source %.', record_check.name, record_check.source
      using errcode = 'TU002', detail = json_build_object('switchover', record_check.name, 'source', record_check.source)::text;
  end if;
  return recorded;
end
$$;

CREATE FUNCTION turnout.record_outcome(consumer text, effect_key text, occurred_at timestamp with time zone, event_id uuid, event_type text, source text, topic text, key text, generation integer, number bigint, path text, outcome text, request_hash text, answer jsonb, reason text, attempts integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
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

CREATE FUNCTION turnout.record_reply(effect_key text, event_id uuid, event_type text, data json) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
  update turnout.reply r
    set event_id = record_reply.event_id, event_type = record_reply.event_type, data = record_reply.data,
        settled_at = coalesce(r.settled_at, clock_timestamp())
    where r.effect_key = record_reply.effect_key and r.event_id is null
      and coalesce(r.reply_type, record_reply.event_type) is not distinct from record_reply.event_type;
  return found;
end
$$;

CREATE FUNCTION turnout.record_shadow(consumer text, release text, gathered jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
#variable_conflict use_column
begin
  insert into turnout.shadow_call (consumer, effect_key, event_type, called_at, bucket, sample)
    select record_shadow.consumer, c."effectKey", c."eventType", clock_timestamp() - make_interval(secs => c.ago / 1000.0), c.bucket, c.sample
      from jsonb_to_recordset(record_shadow.gathered -> 'calls')
           as c ("effectKey" text, "eventType" text, ago double precision, bucket integer, sample integer)
     order by c."effectKey"
    on conflict do nothing;
  insert into turnout.shadow_count as n (consumer, event_type, variant, release, minute, matched, mismatched, failed, skipped)
    select record_shadow.consumer, c."eventType", c.variant, record_shadow.release, date_trunc('minute', clock_timestamp()),
           c.matched, c.mismatched, c.failed, c.skipped
      from jsonb_to_recordset(record_shadow.gathered -> 'counts')
           as c ("eventType" text, variant text, matched bigint, mismatched bigint, failed bigint, skipped bigint)
     order by c."eventType", c.variant
    on conflict (consumer, event_type, variant, release, minute) do update
      set matched = n.matched + excluded.matched, mismatched = n.mismatched + excluded.mismatched,
          failed = n.failed + excluded.failed, skipped = n.skipped + excluded.skipped;
  insert into turnout.shadow_mismatch as m (consumer, fingerprint, minute, release, kind, event_type, paths, count, first_at, last_at)
    select record_shadow.consumer, g.fingerprint, date_trunc('minute', clock_timestamp()), record_shadow.release, g.kind, g."eventType",
           g.paths, g.count, clock_timestamp(), clock_timestamp()
      from jsonb_to_recordset(record_shadow.gathered -> 'mismatches')
           as g (fingerprint text, kind text, "eventType" text, paths jsonb, count bigint)
     order by g.fingerprint, g."eventType"
    on conflict (consumer, fingerprint, minute, release, event_type) do update set count = m.count + excluded.count, last_at = excluded.last_at;
  -- The newest five of a group stay.
  insert into turnout.shadow_example (consumer, fingerprint, effect_key, release, expected, actual, at)
    select record_shadow.consumer, g.fingerprint, g."effectKey", record_shadow.release, g.expected, g.actual, clock_timestamp()
      from jsonb_to_recordset(record_shadow.gathered -> 'mismatches') as g (fingerprint text, "effectKey" text, expected jsonb, actual jsonb);
  delete from turnout.shadow_example e
    using (select x.id, row_number() over (partition by x.fingerprint order by x.id desc) as nth
             from turnout.shadow_example x
            where x.consumer = record_shadow.consumer
              and x.fingerprint in (select g ->> 'fingerprint' from jsonb_array_elements(record_shadow.gathered -> 'mismatches') g)) old
    where e.id = old.id and old.nth > 5;
  if record_shadow.gathered ? 'variants' then
    delete from turnout.shadow_variant v
      where v.consumer = record_shadow.consumer and not (record_shadow.gathered -> 'variants') ? v.variant;
    insert into turnout.shadow_variant (consumer, variant)
      select record_shadow.consumer, v from jsonb_array_elements_text(record_shadow.gathered -> 'variants') v order by v
      on conflict do nothing;
  end if;
end
$$;

CREATE FUNCTION turnout.record_shadow_arrivals(consumer text, arrivals jsonb) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
  insert into turnout.shadow_arrival (consumer, effect_key, event_type, source, topic, partition, "offset", key, generation, place, epoch,
                                      occurred_at, arrived_at, problem, bucket, sample)
  select record_shadow_arrivals.consumer, a."effectKey", a."eventType", a.source, a.topic, a.partition, a."offset", a.key, a.generation,
         a.place, a.epoch, a."occurredAt", clock_timestamp(), a.problem, a.bucket, a.sample
    from jsonb_to_recordset(record_shadow_arrivals.arrivals)
         as a ("effectKey" text, "eventType" text, source text, topic text, partition integer, "offset" bigint, key text, generation integer,
               place bigint, epoch bigint, "occurredAt" timestamptz, problem text, bucket integer, sample integer)
  on conflict do nothing;
$$;

CREATE FUNCTION turnout.record_since(source text, name text, since jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
  update turnout.switchover s set since = record_since.since
    where s.source = record_since.source and s.name = record_since.name and s.since is null;
end
$$;

CREATE FUNCTION turnout.redrive(source text, name text, consumed jsonb DEFAULT NULL::jsonb, seqs bigint[] DEFAULT '{}'::bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  current turnout.switchover;
  first_epoch bigint := 0;
  -- Everything that is visible here has been consumed.
  done pg_snapshot := '1:1:';
  redriven bigint;
begin
  -- Held against a change of its endpoint. Stage changes, those of a guardrail above all, don't wait for this; that `done` doesn't come
  -- between is seen to by turnout.rpc_open, to which all that is owed refers.
  select * into current from turnout.switchover s
    where s.source = redrive.source and s.name = redrive.name for key share;
  if not found then
    raise exception 'Switchover % does not exist in source %.', redrive.name, redrive.source
      using errcode = 'TU002', detail = json_build_object('switchover', redrive.name, 'source', redrive.source)::text;
  end if;
  if current.stage = 'done' then
    raise exception 'Switchover % is done.', current.name
      using errcode = 'TU017', detail = json_build_object('switchover', current.name)::text;
  end if;
  if current.endpoint = 'bridged' then
    -- It doesn't know what it has had.
    raise exception 'Switchover % has a bridged endpoint, through which nothing may come twice.', current.name
      using errcode = 'TU013', detail = json_build_object('switchover', current.name)::text;
  end if;
  if redrive.consumed is null then
    select coalesce(max(h.epoch), current.epoch + 1) into first_epoch from turnout.switchover_history h
      where h.source = current.source and h.switchover = current.name and h.from_stage = 'rpc' and h.to_stage <> 'rpc';
  else
    done := turnout.consumed_snapshot(current.source, current.topic, redrive.consumed);
  end if;

  with wanted as (
    select o.seq, o.xid, o.id, o.topic, o.aggregateid, o.type, o.routes from turnout.outbox o
      where o.source = current.source and o.xid >= pg_snapshot_xmin(done) and not pg_visible_in_snapshot(o.xid, done)
    union
    select o.seq, o.xid, o.id, o.topic, o.aggregateid, o.type, o.routes from turnout.outbox o
      where o.source = current.source and o.seq = any (redrive.seqs)
  ), routed as (
    select w.*, e.entry from wanted w
    cross join lateral unnest(string_to_array(w.routes, ', ')) as e (entry)
    where w.topic = current.topic and w.type = any (current.event_types) and starts_with(e.entry, current.consumer || '=event;')
  ), inserted as (
    insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key,
                                      generation, number, epoch, due_at)
      select current.consumer || '.' || r.id, current.source, current.name, r.seq % 16, current.consumer, r.id, r.seq, r.xid, r.topic,
             r.aggregateid, substring(r.entry from ';generation=(\d+)')::integer, substring(r.entry from ';number=(\d+)')::bigint,
             substring(r.entry from ';epoch=(\d+)')::bigint, clock_timestamp()
      from routed r
      where substring(r.entry from ';epoch=(\d+)')::bigint >= first_epoch or r.seq = any (redrive.seqs)
      order by r.seq
      on conflict (effect_key) do nothing
      returning 1
  )
  select count(*) into redriven from inserted;
  insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, detail)
    values (current.source, current.name, current.epoch, current.stage, current.stage, current.percent,
            format('(calls for events: %s)', redriven), jsonb_build_object('redriven', redriven));
  return redriven;
exception when foreign_key_violation then
  -- It has become so meanwhile.
  raise exception 'Switchover % is done.', current.name
    using errcode = 'TU017', detail = json_build_object('switchover', current.name)::text;
end
$$;

CREATE FUNCTION turnout.refuse_event(event json, place integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_variable
declare
  event_key text := event ->> 'key';
  bytes integer := octet_length((event -> 'data')::text) + coalesce(octet_length(nullif((event -> 'headers')::jsonb, 'null')::text), 0);
  registered record;
  path text;
begin
  select t.max_bytes, r.ordering into registered
    from turnout.event_type r join turnout.topic t on t.name = r.topic
    where r.name = event ->> 'type' and r.version = (event ->> 'version')::integer;
  if not found then
    raise exception 'Event type % v% is not registered.', event ->> 'type', event ->> 'version'
      using errcode = 'TU003', detail = json_build_object('type', event ->> 'type', 'version', event -> 'version', 'index', place)::text;
  end if;
  if coalesce(json_typeof(event -> 'data'), 'null') = 'null' then
    raise exception 'Event % has no data.', event ->> 'type'
      using errcode = 'TU009', detail = json_build_object('type', event ->> 'type', 'path', 'data', 'index', place)::text;
  end if;
  if bytes > registered.max_bytes then
    raise exception 'The payload of % has % bytes with its headers; its topic takes %.', event ->> 'type', bytes, registered.max_bytes
      using errcode = 'TU004', detail = json_build_object('type', event ->> 'type', 'bytes', bytes, 'maxBytes', registered.max_bytes, 'index', place)::text;
  end if;
  if registered.ordering = 'key' and coalesce(event_key, '') = '' then
    raise exception 'Event % is ordered by key and has none.', event ->> 'type'
      using errcode = 'TU005', detail = json_build_object('type', event ->> 'type', 'path', 'key', 'index', place)::text;
  end if;
  path := case when event_key = '' or octet_length(event_key) > 1000 then 'key' else turnout.bad_header((event -> 'headers')::jsonb) end;
  raise exception 'Event % has a % that can''t be carried.', event ->> 'type', coalesce(path, 'field')
    using errcode = 'TU009', detail = json_build_object('type', event ->> 'type', 'path', path, 'index', place)::text;
end
$$;

CREATE FUNCTION turnout.register_events(source text, topics jsonb, events jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  clash record;
begin
  insert into turnout.source (name) values (register_events.source) on conflict do nothing;
  insert into turnout.topic (name, partitions, max_bytes)
    select t.name, t.partitions, coalesce(t."maxBytes", 900000)
    from jsonb_to_recordset(register_events.topics) as t (name text, partitions integer, "maxBytes" integer)
    on conflict (name) do update set max_bytes = excluded.max_bytes
      where turnout.topic.max_bytes <> excluded.max_bytes;
  select t.name, t.partitions as wanted, r.partitions as recorded into clash
    from jsonb_to_recordset(register_events.topics) as t (name text, partitions integer)
    join turnout.topic r on r.name = t.name and r.partitions <> t.partitions limit 1;
  if found then
    raise exception 'Topic % is recorded with % partitions and declared with %.', clash.name, clash.recorded, clash.wanted
      using errcode = 'TU007', detail = json_build_object('topic', clash.name, 'recorded', clash.recorded, 'declared', clash.wanted)::text;
  end if;
  insert into turnout.event_type (name, version, topic, aggregate, ordering)
    select e.name, e.version, e.topic, e.aggregate, e.ordering
    from jsonb_to_recordset(register_events.events) as e (name text, version integer, topic text, aggregate text, ordering text)
    on conflict do nothing;
  select e.name, e.version, e.topic as wanted, e.ordering as wanted_ordering, r.topic as recorded, r.ordering as recorded_ordering into clash
    from jsonb_to_recordset(register_events.events) as e (name text, version integer, topic text, ordering text)
    join turnout.event_type r on r.name = e.name and r.version = e.version
    where r.topic <> e.topic or r.ordering <> e.ordering limit 1;
  if found then
    raise exception 'Event type % v% is recorded on topic % with order %, and declared on topic % with order %.',
      clash.name, clash.version, clash.recorded, clash.recorded_ordering, clash.wanted, clash.wanted_ordering
      using errcode = 'TU008', detail = json_build_object('type', clash.name, 'version', clash.version)::text;
  end if;
end
$$;

CREATE FUNCTION turnout.register_switchover(source text, name text, consumer text, event_types text[], ordering text, reason text, endpoint text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  existing turnout.switchover;
  shared_topic text;
  unknown text;
  clash text;
  left_out text;
  added text;
begin
  select t into unknown from unnest(event_types) t where not exists (select from turnout.event_type e where e.name = t) limit 1;
  if found then
    raise exception 'Event type % is not registered.', unknown
      using errcode = 'TU003', detail = json_build_object('type', unknown)::text;
  end if;
  select min(e.topic) into shared_topic from turnout.event_type e where e.name = any (event_types) having min(e.topic) = max(e.topic);
  if not found then
    raise exception 'The event types of switchover % are on several topics.', register_switchover.name
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name)::text;
  end if;
  if register_switchover.ordering = 'key' and exists (select from turnout.event_type e where e.name = any (event_types) and e.ordering <> 'key') then
    raise exception 'Switchover % is ordered and one of its event types is not.', register_switchover.name
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name)::text;
  end if;
  select s.name into clash from turnout.switchover s
    where s.source = register_switchover.source and s.consumer = register_switchover.consumer
      and s.name <> register_switchover.name and s.event_types && register_switchover.event_types limit 1;
  if found then
    raise exception 'Switchover % already moves consumer % for one of these event types.', clash, register_switchover.consumer
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name, 'other', clash)::text;
  end if;

  select * into existing from turnout.switchover s
    where s.source = register_switchover.source and s.name = register_switchover.name for update;
  if found then
    if existing.consumer <> register_switchover.consumer or existing.ordering <> register_switchover.ordering
       or existing.topic <> shared_topic then
      raise exception 'Switchover % is recorded for consumer %, topic %, order %, and declared otherwise.',
        existing.name, existing.consumer, existing.topic, existing.ordering
        using errcode = 'TU010', detail = json_build_object('switchover', existing.name)::text;
    end if;
    select string_agg(t, ', ' order by n) into left_out
      from unnest(existing.event_types) with ordinality as l (t, n) where not t = any (register_switchover.event_types);
    if left_out is not null then
      raise exception 'Switchover % has event types that were left out: %.', existing.name, left_out
        using errcode = 'TU010', detail = json_build_object('switchover', existing.name, 'types', left_out)::text;
    end if;
    if existing.endpoint <> register_switchover.endpoint then
      if existing.stage <> 'rpc' then
        raise exception 'The endpoint of switchover % is %, and changes in stage rpc only.', existing.name, existing.endpoint
          using errcode = 'TU010', detail = json_build_object('switchover', existing.name, 'endpoint', existing.endpoint)::text;
      end if;
      update turnout.switchover s set endpoint = register_switchover.endpoint
        where s.source = existing.source and s.name = existing.name;
      insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason)
        values (existing.source, existing.name, existing.epoch, existing.stage, existing.stage, existing.percent,
                concat_ws(' ', nullif(trim(register_switchover.reason), ''),
                          format('(endpoint: %s, was %s)', register_switchover.endpoint, existing.endpoint)));
    end if;
    select string_agg(t, ', ' order by n) into added
      from unnest(register_switchover.event_types) with ordinality as l (t, n) where not t = any (existing.event_types);
    if added is not null then
      update turnout.switchover s set event_types = register_switchover.event_types
        where s.source = existing.source and s.name = existing.name;
      insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason)
        values (existing.source, existing.name, existing.epoch, existing.stage, existing.stage, existing.percent,
                concat_ws(' ', nullif(trim(register_switchover.reason), ''), format('(event types added: %s)', added)));
    end if;
    return false;
  end if;

  insert into turnout.switchover (source, name, consumer, topic, event_types, ordering, endpoint)
    values (register_switchover.source, register_switchover.name, register_switchover.consumer, shared_topic,
            register_switchover.event_types, register_switchover.ordering, coalesce(register_switchover.endpoint, 'wrapped'));
  insert into turnout.rpc_open (source, switchover, stripe)
    select register_switchover.source, register_switchover.name, n from generate_series(0, 15) n;
  insert into turnout.switchover_history (source, switchover, epoch, to_stage, reason)
    values (register_switchover.source, register_switchover.name, 1, 'rpc', register_switchover.reason);
  return true;
end
$$;

CREATE FUNCTION turnout.reply_status(effect_keys text[]) RETURNS TABLE(effect_key text, switchover text, route text, outcome text, answer text, event_id uuid, event_type text, data text, is_owed boolean)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select r.effect_key, r.switchover, r.route, r.outcome, r.answer::text, r.event_id, r.event_type, r.data::text,
         exists (select from turnout.rpc_delivery d where d.effect_key = r.effect_key)
  from turnout.reply r
  where r.effect_key = any (reply_status.effect_keys)
$$;

CREATE FUNCTION turnout.resume_key(consumer text, source text, topic text, key text, reason text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  skipped integer;
begin
  if coalesce(trim(resume_key.reason), '') = '' then
    raise exception 'To resume a key needs a reason.' using errcode = 'TU012', detail = json_build_object('key', resume_key.key)::text;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(concat_ws(e'\x1f', 'key', consumer, source, topic, key), 7472));
  insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, generation, number, path, outcome, reason)
    select distinct on (a.detail ->> 'effectKey') a.consumer, a.detail ->> 'effectKey', (a.detail ->> 'occurredAt')::timestamptz,
           (a.detail ->> 'eventId')::uuid, a.detail ->> 'eventType', a.detail ->> 'source', a.detail ->> 'topic', a.detail ->> 'key',
           (a.detail ->> 'generation')::integer, (a.detail ->> 'number')::bigint, a.detail ->> 'path', 'skipped', resume_key.reason
    from turnout.alarm a
    where a.consumer = resume_key.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'source' = resume_key.source
      and a.detail ->> 'topic' = resume_key.topic and a.detail ->> 'key' = resume_key.key
    on conflict do nothing;
  get diagnostics skipped = row_count;
  delete from turnout.held h using turnout.alarm a
    where a.consumer = resume_key.consumer and a.kind = 'unknown-repeat' and h.consumer = a.consumer
      and h.effect_key = a.detail ->> 'effectKey' and a.detail ->> 'key' = resume_key.key;
  update turnout.gate g set halted = null
    where g.consumer = resume_key.consumer and g.source = resume_key.source and g.topic = resume_key.topic and g.key = resume_key.key;
  return skipped;
end
$$;

CREATE FUNCTION turnout.retry_parked(consumer text, effect_key text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
begin
  update turnout.held h set reason = 'behind', attempts = 0
    where h.consumer = retry_parked.consumer and h.effect_key = retry_parked.effect_key and h.reason = 'parked';
  return found;
end
$$;

CREATE FUNCTION turnout.route_for(stage text, percent numeric, salt text, key text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case stage
    when 'rpc' then 'rpc'
    when 'shadow' then 'rpc'
    when 'ramp' then case when turnout.ramp_bucket(salt, key) < percent * 100 then 'event' else 'rpc' end
    when 'event' then 'event'
    when 'done' then 'event'
  end
$$;

CREATE FUNCTION turnout.route_of(routes text, consumer text) RETURNS TABLE(route text, generation integer, number bigint)
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION turnout.see_alarms(consumer text, up_to bigint, reason text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
  seen integer;
begin
  if coalesce(trim(see_alarms.reason), '') = '' then
    raise exception 'To pass over alarms needs a reason.' using errcode = 'TU012', detail = json_build_object('consumer', see_alarms.consumer)::text;
  end if;
  update turnout.alarm a set seen_at = clock_timestamp(), seen_by = session_user, seen_reason = see_alarms.reason
    where a.consumer = see_alarms.consumer and a.id <= see_alarms.up_to and a.seen_at is null;
  get diagnostics seen = row_count;
  return seen;
end
$$;

CREATE FUNCTION turnout.set_aside(effect jsonb, reason text, error text, attempts integer) RETURNS text
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select case h.result when 'done' then 'duplicate' else h.result end
  from turnout.hold_event(
    effect ->> 'consumer', effect ->> 'effectKey', (effect ->> 'occurredAt')::timestamptz, reason, effect ->> 'source', effect ->> 'topic',
    (effect ->> 'partition')::integer, (effect ->> 'offset')::bigint,
    case when effect ->> 'number' is not null or effect ->> 'eventId' is null then effect ->> 'key' end,
    (effect ->> 'generation')::integer, (effect ->> 'number')::bigint, effect -> 'message', error, attempts) as h (result)
$$;

CREATE FUNCTION turnout.set_stage(source text, name text, stage text, reason text, percent numeric DEFAULT 0, force boolean DEFAULT false, expected_epoch bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select turnout.change_stage(set_stage.source, set_stage.name, set_stage.stage, set_stage.reason, set_stage.percent,
                              coalesce(set_stage.force, false), false, null, set_stage.expected_epoch)
$$;

CREATE FUNCTION turnout.settle_call(effect_key text, outcome text, answer json) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  with settled as (
    delete from turnout.rpc_delivery d where d.effect_key = settle_call.effect_key
  ), told as (
    -- Without an outcome it came as an event before: the effect is had, and nobody has heard the endpoint.
    update turnout.proxied_call p
      set outcome = coalesce(settle_call.outcome, 'duplicate'), answer = settle_call.answer, settled_at = clock_timestamp()
      where p.effect_key = settle_call.effect_key and p.outcome is null
  )
  update turnout.reply r
    set outcome = settle_call.outcome, settled_at = coalesce(r.settled_at, clock_timestamp()),
        answer = case when settle_call.answer -> 'body' is null then null
                      else json_build_object('status', settle_call.answer -> 'status', 'body', settle_call.answer -> 'body') end
    where r.effect_key = settle_call.effect_key and r.outcome is null and settle_call.outcome is not null
$$;

CREATE FUNCTION turnout.skip_parked(consumer text, effect_key text, reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $_$
#variable_conflict use_column
declare
  parked turnout.held;
  headers jsonb;
  happened timestamptz;
begin
  if coalesce(trim(skip_parked.reason), '') = '' then
    raise exception 'To skip an event needs a reason.' using errcode = 'TU012', detail = json_build_object('effectKey', skip_parked.effect_key)::text;
  end if;
  select * into parked from turnout.held h
    where h.consumer = skip_parked.consumer and h.effect_key = skip_parked.effect_key and h.reason <> 'early';
  if not found then
    return false;
  end if;
  headers := case when parked.message ? 'base64'
                  then convert_from(decode(parked.message ->> 'base64', 'base64'), 'UTF8')::jsonb -> 'headers'
                  else parked.message -> 'headers' end;
  begin
    happened := (headers ->> 'ce_time')::timestamptz;
  exception when data_exception then
    happened := null;
  end;
  if happened is null or coalesce(headers ->> 'ce_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    -- No event: nothing can ever repeat it, so there is no outcome to keep.
    delete from turnout.held h where h.id = parked.id;
    return found;
  end if;
  perform turnout.make_inbox_partition(happened);
  perform from turnout.enter_inbox(parked.consumer, parked.effect_key, happened, parked.source, parked.topic, parked.key,
                                   parked.number is not null, true, 0, 0) e where e.locked;
  if not found then
    raise exception 'The effect % is being applied just now; try again.', parked.effect_key using errcode = 'lock_not_available';
  end if;
  -- Under the lock: a call may have brought the effect meanwhile.
  perform from turnout.held h where h.id = parked.id for update;
  if not found then
    return false;
  end if;
  perform turnout.record_outcome(parked.consumer, parked.effect_key, happened, (headers ->> 'ce_id')::uuid, headers ->> 'ce_type',
                                 parked.source, parked.topic, parked.key, parked.generation, parked.number, 'event', 'skipped',
                                 null, null, skip_parked.reason, parked.attempts);
  return true;
end
$_$;

CREATE TABLE turnout.switchover (
    source text NOT NULL,
    name text NOT NULL,
    consumer text NOT NULL,
    topic text NOT NULL,
    event_types text[] NOT NULL,
    ordering text NOT NULL,
    stage text DEFAULT 'rpc'::text NOT NULL,
    percent numeric(5,2) DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 1 NOT NULL,
    generation integer DEFAULT 1 NOT NULL,
    salt text DEFAULT (gen_random_uuid())::text NOT NULL,
    since jsonb,
    created_xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    endpoint text DEFAULT 'wrapped'::text NOT NULL,
    CONSTRAINT switchover_consumer_check CHECK ((consumer ~ '^[a-z0-9][a-z0-9._-]{0,99}$'::text)),
    CONSTRAINT switchover_endpoint_check CHECK ((endpoint = ANY (ARRAY['wrapped'::text, 'bridged'::text]))),
    CONSTRAINT switchover_event_types_check CHECK ((cardinality(event_types) > 0)),
    CONSTRAINT switchover_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'::text)),
    CONSTRAINT switchover_ordering_check CHECK ((ordering = ANY (ARRAY['key'::text, 'none'::text]))),
    CONSTRAINT switchover_percent_check CHECK (((percent >= (0)::numeric) AND (percent <= (100)::numeric))),
    CONSTRAINT switchover_stage_check CHECK ((stage = ANY (ARRAY['rpc'::text, 'shadow'::text, 'ramp'::text, 'event'::text, 'done'::text])))
);

CREATE FUNCTION turnout.stage_problem(code text, current turnout.switchover, stage text, percent numeric, facts jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select jsonb_build_object('sqlState', code, 'message', t.message,
                            'details', jsonb_build_object('switchover', current.name) || t.details)
  from (select case code
    when 'TU011' then format('There is no stage %s.', coalesce(stage, 'null'))
    when 'TU017' then format('Switchover %s is done.', current.name)
    when 'TU012' then 'A stage change needs a reason.'
    when 'TU022' then case when stage = 'ramp'
      then format('Stage ramp needs a percentage above 0 and up to 100, to two places, not %s.', coalesce(percent::text, 'none'))
      else format('A percentage goes with stage ramp, not with %s.', stage) end
    when 'TU013' then format('Switchover %s has a bridged endpoint, for which there is no stage %s.', current.name, stage)
    when 'TU024' then format('Stage done comes after event, and switchover %s is in stage %s.', current.name, current.stage)
    when 'TU014' then format('Consumer %s has not recorded where it started.', current.consumer)
    when 'TU021' then format('Switchover %s owes %s calls.', current.name, facts ->> 'owed')
    when 'TU016' then format('Events of switchover %s are still published by code that does not declare it: %s in the last 5 minutes, the newest at %s.',
                             current.name, facts ->> 'events', facts ->> 'newest')
    when 'TU015' then format('Switchover %s has no check of the last ten minutes for stage %s.', current.name, stage)
    when 'TU020' then format('The newest check of switchover %s for stage %s says %s.', current.name, stage, facts ->> 'verdict')
  end as message, case code
    when 'TU011' then jsonb_build_object('stage', stage)
    when 'TU022' then jsonb_build_object('stage', stage, 'percent', percent)
    when 'TU013' then jsonb_build_object('stage', stage)
    when 'TU024' then jsonb_build_object('from', current.stage, 'to', stage)
    when 'TU014' then jsonb_build_object('consumer', current.consumer)
    when 'TU021' then jsonb_build_object('owed', facts -> 'owed')
    when 'TU016' then jsonb_build_object('events', facts -> 'events', 'newest', facts -> 'newest')
    when 'TU015' then jsonb_build_object('stage', stage)
    when 'TU020' then jsonb_build_object('stage', stage, 'verdict', facts -> 'verdict', 'findings', facts -> 'findings')
    else '{}'::jsonb
  end as details) t
$$;

CREATE FUNCTION turnout.stage_problems(current_stage text, current_percent numeric, endpoint text, ordering text, has_since boolean, stage text, percent numeric, reason text, undeclared bigint, verdict text, owed bigint) RETURNS TABLE(place integer, code text, forceable boolean)
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  with asked as (
    select turnout.stage_rank(stage) > turnout.stage_rank(current_stage)
             or (stage = 'ramp' and current_stage = 'ramp' and percent > current_percent) as promotes,
           endpoint = 'bridged' and ordering = 'key' as drains,
           endpoint = 'bridged' and stage in ('shadow', 'ramp') as lacking,
           stage = 'done' and current_stage <> 'event' as too_soon
  )
  select p.place, p.code, p.forceable
  from asked a
  cross join lateral (values
    (1, 'TU011', false, turnout.stage_rank(stage) is null),
    (2, 'TU017', false, current_stage = 'done'),
    (3, 'TU012', false, coalesce(trim(reason), '') = ''),
    (4, 'TU022', false, case when stage = 'ramp' then not coalesce(percent > 0 and percent <= 100, false) else coalesce(percent, 0) <> 0 end),
    (5, 'TU013', false, a.lacking),
    (6, 'TU024', false, a.too_soon),
    -- Without a start of its own the consumer would skip events that were routed to it.
    (7, 'TU014', false, a.promotes and stage <> 'shadow' and not has_since),
    -- Calls and events of a key would meet at an endpoint that can't tell their order; or the endpoint may be gone.
    (8, 'TU021', false, owed > 0 and (stage = 'done' or (stage = 'event' and a.drains))),
    (9, 'TU016', true, a.promotes and undeclared > 0),
    (10, 'TU015', true, (a.promotes or (stage = 'rpc' and a.drains)) and verdict is null),
    (11, 'TU020', true, (a.promotes or (stage = 'rpc' and a.drains)) and verdict <> 'ready')
  ) as p (place, code, forceable, stands)
  where p.stands
    -- Of a change that can't be, nothing else is of interest.
    and (turnout.stage_rank(stage) is not null or p.place = 1)
    and (current_stage <> 'done' or p.place <= 2)
    and (not (a.lacking or a.too_soon) or p.place <= 6)
  order by p.place
$$;

CREATE FUNCTION turnout.stage_rank(stage text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select array_position(array['rpc', 'shadow', 'ramp', 'event', 'done'], stage) $$;

CREATE FUNCTION turnout.step_back(source text, name text, stage text, reason text, detail jsonb DEFAULT NULL::jsonb, percent numeric DEFAULT 0, expected_epoch bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select turnout.change_stage(step_back.source, step_back.name, step_back.stage, step_back.reason, step_back.percent,
                              false, true, step_back.detail, step_back.expected_epoch)
$$;

CREATE FUNCTION turnout.undeclared_publishers(source text, name text, within_time interval DEFAULT '00:05:00'::interval) RETURNS TABLE(events bigint, newest timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
  select count(*), max(recent.occurred_at)
  from turnout.switchover s
  cross join lateral (
    select o.type, o.source, o.routes, o.occurred_at
    from turnout.outbox o
    where o.xid > s.created_xid
    order by o.xid desc
    limit 20000
  ) recent
  where s.source = undeclared_publishers.source and s.name = undeclared_publishers.name
    and recent.source = s.source and recent.type = any (s.event_types)
    and recent.occurred_at > clock_timestamp() - within_time
    and position(', ' || s.consumer || '=' in ', ' || coalesce(recent.routes, '')) = 0
$$;

CREATE FUNCTION turnout.unwatch_table(watched regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  execute format('drop trigger if exists turnout_capture on %s', watched);
  execute format('drop trigger if exists turnout_capture_all on %s', watched);
end
$$;

CREATE FUNCTION turnout.waive_mismatch(consumer text, fingerprint text, until timestamp with time zone, reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'turnout', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
  if coalesce(trim(waive_mismatch.reason), '') = '' then
    raise exception 'To waive a mismatch needs a reason.' using errcode = 'TU012';
  end if;
  perform from turnout.shadow_mismatch m
    where m.consumer = waive_mismatch.consumer and m.fingerprint = waive_mismatch.fingerprint limit 1;
  if not found then
    raise exception 'The shadow of % has no group %.', waive_mismatch.consumer, waive_mismatch.fingerprint
      using errcode = 'TU025', detail = json_build_object('consumer', waive_mismatch.consumer, 'fingerprint', waive_mismatch.fingerprint)::text;
  end if;
  insert into turnout.shadow_waiver (consumer, fingerprint, until, reason, by)
    values (waive_mismatch.consumer, waive_mismatch.fingerprint, waive_mismatch.until, waive_mismatch.reason, session_user)
    on conflict (consumer, fingerprint) do update
      set until = excluded.until, reason = excluded.reason, by = excluded.by, at = clock_timestamp();
end
$$;

CREATE FUNCTION turnout.watch_table(watched regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  relation record;
  name text;
begin
  select c.relname, c.relkind, n.nspname into relation
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = watched;
  if relation.relkind not in ('r', 'p') or relation.nspname in ('turnout', 'pg_catalog', 'information_schema') then
    raise exception '% can''t be watched: it is no table of the service''s own.', watched
      using errcode = 'TU026', detail = json_build_object('table', watched::text)::text;
  end if;
  name := case when relation.nspname = 'public' then relation.relname else relation.nspname || '.' || relation.relname end;
  execute format('create or replace trigger turnout_capture after insert or update or delete on %s for each row '
                 'when (current_setting(''turnout.capture'', true) <> '''') execute function turnout.capture_write(%L)', watched, name);
  if relation.relkind = 'r' then
    execute format('create or replace trigger turnout_capture_all after truncate on %s for each statement '
                   'when (current_setting(''turnout.capture'', true) <> '''') execute function turnout.capture_write(%L)', watched, name);
  end if;
end
$$;

CREATE TABLE turnout.alarm (
    id bigint NOT NULL,
    consumer text NOT NULL,
    kind text NOT NULL,
    detail jsonb NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    seen_at timestamp with time zone,
    seen_by text,
    seen_reason text,
    CONSTRAINT alarm_kind_check CHECK ((kind = ANY (ARRAY['sequence-hole'::text, 'unknown-repeat'::text, 'skipped-old'::text, 'halted'::text, 'uncertain'::text, 'repeated-id'::text, 'number-passed'::text])))
);

ALTER TABLE turnout.alarm ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.alarm_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.assignment (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    owner text,
    assigned_at timestamp with time zone,
    begun_offset bigint,
    begun integer DEFAULT 0 NOT NULL,
    failed integer DEFAULT 0 NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE turnout.consumed_sequence (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    source text NOT NULL,
    generation integer NOT NULL,
    base bigint NOT NULL,
    last bigint NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE turnout.endpoint_seen (
    consumer text NOT NULL,
    endpoint text NOT NULL,
    first_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    keyed_at timestamp with time zone,
    unkeyed_at timestamp with time zone
)
WITH (fillfactor='70');

CREATE TABLE turnout.event_type (
    name text NOT NULL,
    version integer NOT NULL,
    topic text NOT NULL,
    aggregate text NOT NULL,
    ordering text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT event_type_ordering_check CHECK ((ordering = ANY (ARRAY['key'::text, 'none'::text]))),
    CONSTRAINT event_type_version_check CHECK ((version > 0))
);

CREATE TABLE turnout.gate (
    consumer text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    generation integer NOT NULL,
    last_number bigint NOT NULL,
    halted text
)
WITH (fillfactor='70');

ALTER TABLE turnout.held ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.held_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.inbox (
    consumer text NOT NULL,
    effect_key text NOT NULL,
    occurred_at timestamp(3) with time zone NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    source text NOT NULL,
    topic text,
    key text,
    generation integer,
    number bigint,
    path text NOT NULL,
    outcome text NOT NULL,
    request_hash text,
    answer jsonb,
    reason text,
    attempts integer DEFAULT 1 NOT NULL,
    finished_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['running'::text, 'queued'::text, 'applied'::text, 'rejected'::text, 'skipped'::text, 'dead'::text]))),
    CONSTRAINT inbox_path_check CHECK ((path = ANY (ARRAY['rpc'::text, 'event'::text])))
)
PARTITION BY RANGE (occurred_at);

CREATE TABLE turnout.key_number (
    source text NOT NULL,
    consumer text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    generation integer NOT NULL,
    number bigint NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE turnout.migration (
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE turnout.outbox (
    seq bigint NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    id uuid NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text,
    type text NOT NULL,
    version integer NOT NULL,
    payload json NOT NULL,
    routes text,
    headers jsonb,
    occurred_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL
)
PARTITION BY RANGE (seq);

ALTER TABLE turnout.outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout."position" (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    since bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE turnout.proxied_call (
    source text NOT NULL,
    proxy text NOT NULL,
    key_hash text NOT NULL,
    request_hash text NOT NULL,
    event_id uuid NOT NULL,
    event_key text,
    effect_key text NOT NULL,
    route text NOT NULL,
    outcome text,
    answer json,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    settled_at timestamp with time zone,
    CONSTRAINT proxied_call_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'rejected'::text, 'skipped'::text, 'dead'::text, 'duplicate'::text]))),
    CONSTRAINT proxied_call_route_check CHECK ((route = ANY (ARRAY['rpc'::text, 'event'::text])))
);

CREATE TABLE turnout.published_id (
    id uuid NOT NULL,
    source text,
    type text,
    version integer,
    topic text,
    key text,
    seq bigint,
    xid xid8,
    occurred_at timestamp(3) with time zone,
    routes text,
    stamps jsonb,
    claimed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE turnout.rebase (
    id bigint NOT NULL,
    reason text NOT NULL,
    copied boolean NOT NULL,
    actor text DEFAULT SESSION_USER NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT rebase_reason_check CHECK ((length(TRIM(BOTH FROM reason)) > 0))
);

ALTER TABLE turnout.rebase ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.rebase_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.relay_shard (
    shard integer NOT NULL,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE turnout.relay_tick (
    shard integer NOT NULL,
    tick bigint NOT NULL,
    lo pg_snapshot NOT NULL,
    hi pg_snapshot NOT NULL,
    after_seq bigint DEFAULT 0 NOT NULL,
    numbers jsonb NOT NULL,
    relay text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE turnout.reply (
    effect_key text NOT NULL,
    switchover text NOT NULL,
    route text NOT NULL,
    reply_type text,
    outcome text,
    answer json,
    event_id uuid,
    event_type text,
    data json,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    settled_at timestamp with time zone,
    CONSTRAINT reply_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'rejected'::text, 'skipped'::text, 'dead'::text, 'duplicate'::text]))),
    CONSTRAINT reply_route_check CHECK ((route = ANY (ARRAY['rpc'::text, 'event'::text])))
)
WITH (fillfactor='70');

CREATE TABLE turnout.rpc_delivery (
    effect_key text NOT NULL,
    source text NOT NULL,
    switchover text NOT NULL,
    stripe smallint NOT NULL,
    consumer text NOT NULL,
    event_id uuid NOT NULL,
    seq bigint NOT NULL,
    xid xid8 NOT NULL,
    topic text NOT NULL,
    key text,
    generation integer,
    number bigint,
    epoch bigint NOT NULL,
    due_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    last_error text,
    shadow boolean DEFAULT false NOT NULL
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');

CREATE TABLE turnout.rpc_open (
    source text NOT NULL,
    switchover text NOT NULL,
    stripe smallint NOT NULL
);

CREATE TABLE turnout.shadow_arrival (
    consumer text NOT NULL,
    effect_key text NOT NULL,
    event_type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key text,
    generation integer,
    place bigint,
    epoch bigint NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    arrived_at timestamp with time zone NOT NULL,
    problem text,
    bucket integer NOT NULL,
    sample integer NOT NULL
);

CREATE TABLE turnout.shadow_call (
    consumer text NOT NULL,
    effect_key text NOT NULL,
    event_type text NOT NULL,
    called_at timestamp with time zone NOT NULL,
    bucket integer NOT NULL,
    sample integer NOT NULL
);

CREATE TABLE turnout.shadow_count (
    consumer text NOT NULL,
    event_type text NOT NULL,
    variant text NOT NULL,
    release text NOT NULL,
    minute timestamp with time zone NOT NULL,
    matched bigint DEFAULT 0 NOT NULL,
    mismatched bigint DEFAULT 0 NOT NULL,
    failed bigint DEFAULT 0 NOT NULL,
    skipped bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='70');

CREATE TABLE turnout.shadow_example (
    id bigint NOT NULL,
    consumer text NOT NULL,
    fingerprint text NOT NULL,
    effect_key text NOT NULL,
    release text NOT NULL,
    expected jsonb NOT NULL,
    actual jsonb NOT NULL,
    at timestamp with time zone NOT NULL
);

ALTER TABLE turnout.shadow_example ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.shadow_example_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.shadow_mismatch (
    consumer text NOT NULL,
    fingerprint text NOT NULL,
    minute timestamp with time zone NOT NULL,
    release text NOT NULL,
    kind text NOT NULL,
    event_type text NOT NULL,
    paths jsonb NOT NULL,
    count bigint NOT NULL,
    first_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone NOT NULL,
    CONSTRAINT shadow_mismatch_kind_check CHECK ((kind = ANY (ARRAY['writes'::text, 'answer'::text, 'effects'::text, 'error'::text, 'several'::text])))
)
WITH (fillfactor='70');

CREATE TABLE turnout.shadow_variant (
    consumer text NOT NULL,
    variant text NOT NULL
);

CREATE TABLE turnout.shadow_waiver (
    consumer text NOT NULL,
    fingerprint text NOT NULL,
    until timestamp with time zone NOT NULL,
    reason text NOT NULL,
    by text DEFAULT SESSION_USER NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE turnout.source (
    name text NOT NULL,
    generation integer DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT source_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'::text))
);

CREATE TABLE turnout.spare_number (
    consumer text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    generation integer NOT NULL,
    number bigint NOT NULL,
    effect_key text NOT NULL
);

CREATE TABLE turnout.stamp (
    source text NOT NULL,
    consumer text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    generation integer NOT NULL,
    number bigint NOT NULL,
    seq bigint NOT NULL,
    xid xid8 NOT NULL,
    event_id uuid NOT NULL,
    switchover text NOT NULL,
    route text NOT NULL,
    epoch bigint NOT NULL,
    CONSTRAINT stamp_route_check CHECK ((route = ANY (ARRAY['rpc'::text, 'event'::text])))
);

CREATE TABLE turnout.switchover_check (
    id bigint NOT NULL,
    source text NOT NULL,
    switchover text NOT NULL,
    epoch bigint NOT NULL,
    for_stage text NOT NULL,
    verdict text NOT NULL,
    findings jsonb DEFAULT '[]'::jsonb NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    actor text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT switchover_check_for_stage_check CHECK ((for_stage = ANY (ARRAY['rpc'::text, 'shadow'::text, 'ramp'::text, 'event'::text, 'done'::text]))),
    CONSTRAINT switchover_check_verdict_check CHECK ((verdict = ANY (ARRAY['ready'::text, 'not-ready'::text, 'inconclusive'::text])))
);

ALTER TABLE turnout.switchover_check ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.switchover_check_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.switchover_history (
    id bigint NOT NULL,
    source text NOT NULL,
    switchover text NOT NULL,
    epoch bigint NOT NULL,
    from_stage text,
    to_stage text NOT NULL,
    percent numeric(5,2) DEFAULT 0 NOT NULL,
    reason text NOT NULL,
    forced boolean DEFAULT false NOT NULL,
    actor text DEFAULT SESSION_USER NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    automatic boolean DEFAULT false NOT NULL,
    detail jsonb,
    CONSTRAINT switchover_history_reason_check CHECK ((length(TRIM(BOTH FROM reason)) > 0))
);

ALTER TABLE turnout.switchover_history ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME turnout.switchover_history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE turnout.topic (
    name text NOT NULL,
    partitions integer NOT NULL,
    max_bytes integer DEFAULT 900000 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT topic_max_bytes_check CHECK ((max_bytes > 0)),
    CONSTRAINT topic_name_check CHECK ((name ~ '^[a-zA-Z0-9._-]{1,249}$'::text)),
    CONSTRAINT topic_partitions_check CHECK (((partitions >= 1) AND (partitions <= 10000)))
);

CREATE TABLE turnout.unknown_caller (
    consumer text NOT NULL,
    endpoint text NOT NULL,
    service text NOT NULL,
    address text NOT NULL,
    calls bigint NOT NULL,
    first_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone NOT NULL
)
WITH (fillfactor='70');

CREATE VIEW turnout.watched_table AS
 SELECT (t.tgrelid)::regclass AS watched,
    convert_from(rtrim(t.tgargs, '\x00'::bytea), 'UTF8'::name) AS name,
    COALESCE(( SELECT json_agg(a.attname ORDER BY k.nth) AS json_agg
           FROM ((pg_index i
             CROSS JOIN LATERAL unnest((i.indkey)::smallint[]) WITH ORDINALITY k(attnum, nth))
             JOIN pg_attribute a ON (((a.attrelid = i.indrelid) AND (a.attnum = k.attnum))))
          WHERE ((i.indrelid = t.tgrelid) AND i.indisprimary)), '[]'::json) AS key_columns,
    COALESCE(( SELECT json_agg(a.attname ORDER BY a.attnum) AS json_agg
           FROM (pg_attribute a
             LEFT JOIN pg_attrdef d ON (((d.adrelid = a.attrelid) AND (d.adnum = a.attnum))))
          WHERE ((a.attrelid = t.tgrelid) AND (a.attnum > 0) AND (NOT a.attisdropped) AND ((a.attidentity <> ''::"char") OR ((a.attgenerated = ''::"char") AND (((d.adbin)::text ~~ '%SQLVALUEFUNCTION%'::text) OR (EXISTS ( SELECT
                   FROM (regexp_matches((d.adbin)::text, 'funcid (\d+)'::text, 'g'::text) f(f)
                     JOIN pg_proc p ON ((p.oid = (f.f[1])::oid)))
                  WHERE (p.provolatile <> 'i'::"char")))))))), '[]'::json) AS generated_columns,
    COALESCE(( SELECT json_agg(json_build_object('column', a.attname, 'table', convert_from(rtrim(o.tgargs, '\x00'::bytea), 'UTF8'::name), 'refers', r.attname)) AS json_agg
           FROM ((((pg_constraint c
             JOIN pg_trigger o ON (((o.tgrelid = c.confrelid) AND (o.tgname = 'turnout_capture'::name))))
             CROSS JOIN LATERAL UNNEST(c.conkey, c.confkey) k(own, other))
             JOIN pg_attribute a ON (((a.attrelid = c.conrelid) AND (a.attnum = k.own))))
             JOIN pg_attribute r ON (((r.attrelid = c.confrelid) AND (r.attnum = k.other))))
          WHERE ((c.conrelid = t.tgrelid) AND (c.contype = 'f'::"char"))), '[]'::json) AS referring_columns
   FROM (pg_trigger t
     JOIN pg_class w ON ((w.oid = t.tgrelid)))
  WHERE ((t.tgname = 'turnout_capture'::name) AND (NOT w.relispartition));

ALTER TABLE ONLY turnout.alarm
    ADD CONSTRAINT alarm_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.assignment
    ADD CONSTRAINT assignment_pkey PRIMARY KEY (consumer, topic, partition);

ALTER TABLE ONLY turnout.consumed_sequence
    ADD CONSTRAINT consumed_sequence_pkey PRIMARY KEY (consumer, topic, partition, source);

ALTER TABLE ONLY turnout.endpoint_seen
    ADD CONSTRAINT endpoint_seen_pkey PRIMARY KEY (consumer, endpoint);

ALTER TABLE ONLY turnout.event_type
    ADD CONSTRAINT event_type_pkey PRIMARY KEY (name, version);

ALTER TABLE ONLY turnout.gate
    ADD CONSTRAINT gate_pkey PRIMARY KEY (consumer, source, topic, key);

ALTER TABLE ONLY turnout.held
    ADD CONSTRAINT held_consumer_effect_key_key UNIQUE (consumer, effect_key);

ALTER TABLE ONLY turnout.held
    ADD CONSTRAINT held_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (consumer, effect_key, occurred_at);

ALTER TABLE ONLY turnout.key_number
    ADD CONSTRAINT key_number_pkey PRIMARY KEY (source, consumer, topic, key);

ALTER TABLE ONLY turnout.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (name);

ALTER TABLE ONLY turnout."position"
    ADD CONSTRAINT position_pkey PRIMARY KEY (consumer, topic, partition);

ALTER TABLE ONLY turnout.proxied_call
    ADD CONSTRAINT proxied_call_pkey PRIMARY KEY (source, proxy, key_hash);

ALTER TABLE ONLY turnout.published_id
    ADD CONSTRAINT published_id_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.rebase
    ADD CONSTRAINT rebase_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.relay_shard
    ADD CONSTRAINT relay_shard_pkey PRIMARY KEY (shard);

ALTER TABLE ONLY turnout.relay_tick
    ADD CONSTRAINT relay_tick_pkey PRIMARY KEY (shard, tick);

ALTER TABLE ONLY turnout.reply
    ADD CONSTRAINT reply_pkey PRIMARY KEY (effect_key);

ALTER TABLE ONLY turnout.rpc_delivery
    ADD CONSTRAINT rpc_delivery_pkey PRIMARY KEY (effect_key);

ALTER TABLE ONLY turnout.rpc_open
    ADD CONSTRAINT rpc_open_pkey PRIMARY KEY (source, switchover, stripe);

ALTER TABLE ONLY turnout.shadow_arrival
    ADD CONSTRAINT shadow_arrival_pkey PRIMARY KEY (consumer, effect_key);

ALTER TABLE ONLY turnout.shadow_call
    ADD CONSTRAINT shadow_call_pkey PRIMARY KEY (consumer, effect_key);

ALTER TABLE ONLY turnout.shadow_count
    ADD CONSTRAINT shadow_count_pkey PRIMARY KEY (consumer, event_type, variant, release, minute);

ALTER TABLE ONLY turnout.shadow_example
    ADD CONSTRAINT shadow_example_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.shadow_mismatch
    ADD CONSTRAINT shadow_mismatch_pkey PRIMARY KEY (consumer, fingerprint, minute, release, event_type);

ALTER TABLE ONLY turnout.shadow_variant
    ADD CONSTRAINT shadow_variant_pkey PRIMARY KEY (consumer, variant);

ALTER TABLE ONLY turnout.shadow_waiver
    ADD CONSTRAINT shadow_waiver_pkey PRIMARY KEY (consumer, fingerprint);

ALTER TABLE ONLY turnout.source
    ADD CONSTRAINT source_pkey PRIMARY KEY (name);

ALTER TABLE ONLY turnout.spare_number
    ADD CONSTRAINT spare_number_pkey PRIMARY KEY (consumer, source, topic, key, generation, number);

ALTER TABLE ONLY turnout.stamp
    ADD CONSTRAINT stamp_pkey PRIMARY KEY (consumer, source, topic, key, generation, number);

ALTER TABLE ONLY turnout.switchover_check
    ADD CONSTRAINT switchover_check_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.switchover_history
    ADD CONSTRAINT switchover_history_pkey PRIMARY KEY (id);

ALTER TABLE ONLY turnout.switchover
    ADD CONSTRAINT switchover_pkey PRIMARY KEY (source, name);

ALTER TABLE ONLY turnout.topic
    ADD CONSTRAINT topic_pkey PRIMARY KEY (name);

ALTER TABLE ONLY turnout.unknown_caller
    ADD CONSTRAINT unknown_caller_pkey PRIMARY KEY (consumer, endpoint, service, address);

CREATE INDEX alarm_unseen ON turnout.alarm USING btree (consumer, kind, at) WHERE (seen_at IS NULL);

CREATE INDEX held_line ON turnout.held USING btree (consumer, source, topic, key, id);

CREATE INDEX held_number ON turnout.held USING btree (consumer, source, topic, key, number);

CREATE INDEX held_oldest ON turnout.held USING btree (consumer, id);

CREATE INDEX held_parked ON turnout.held USING btree (consumer, held_at) WHERE (reason = 'parked'::text);

CREATE INDEX held_waiting ON turnout.held USING btree (consumer, held_at) WHERE (reason <> 'parked'::text);

CREATE INDEX inbox_dead ON ONLY turnout.inbox USING btree (consumer, finished_at) WHERE (outcome = 'dead'::text);

CREATE INDEX inbox_intent ON ONLY turnout.inbox USING btree (consumer) WHERE (outcome = ANY (ARRAY['running'::text, 'queued'::text]));

CREATE INDEX inbox_finished ON ONLY turnout.inbox USING brin (finished_at) WITH (pages_per_range='16', autosummarize='on');

CREATE INDEX outbox_xid ON ONLY turnout.outbox USING btree (xid);

CREATE INDEX proxied_call_at ON turnout.proxied_call USING btree (source, proxy, at);

CREATE UNIQUE INDEX proxied_call_effect ON turnout.proxied_call USING btree (effect_key);

CREATE INDEX published_id_claimed ON turnout.published_id USING btree (claimed_at);

CREATE INDEX reply_at ON turnout.reply USING btree (at);

CREATE INDEX rpc_delivery_due ON turnout.rpc_delivery USING btree (due_at NULLS FIRST);

CREATE INDEX rpc_delivery_key ON turnout.rpc_delivery USING btree (consumer, source, topic, key, number) WHERE (number IS NOT NULL);

CREATE INDEX rpc_delivery_seq ON turnout.rpc_delivery USING btree (seq);

CREATE INDEX shadow_arrival_time ON turnout.shadow_arrival USING btree (consumer, arrived_at);

CREATE INDEX shadow_call_time ON turnout.shadow_call USING btree (consumer, called_at);

CREATE INDEX shadow_count_time ON turnout.shadow_count USING btree (consumer, minute);

CREATE INDEX shadow_example_group ON turnout.shadow_example USING btree (consumer, fingerprint, id);

CREATE INDEX shadow_example_time ON turnout.shadow_example USING btree (consumer, at);

CREATE INDEX shadow_mismatch_time ON turnout.shadow_mismatch USING btree (consumer, minute);

CREATE INDEX switchover_check_newest ON turnout.switchover_check USING btree (source, switchover, id DESC);

CREATE UNIQUE INDEX switchover_ordered ON turnout.switchover USING btree (source, consumer, topic) WHERE (ordering = 'key'::text);

ALTER TABLE ONLY turnout.event_type
    ADD CONSTRAINT event_type_topic_fkey FOREIGN KEY (topic) REFERENCES turnout.topic(name);

ALTER TABLE ONLY turnout.proxied_call
    ADD CONSTRAINT proxied_call_source_fkey FOREIGN KEY (source) REFERENCES turnout.source(name);

ALTER TABLE ONLY turnout.rpc_delivery
    ADD CONSTRAINT rpc_delivery_open FOREIGN KEY (source, switchover, stripe) REFERENCES turnout.rpc_open(source, switchover, stripe);

ALTER TABLE ONLY turnout.rpc_open
    ADD CONSTRAINT rpc_open_source_switchover_fkey FOREIGN KEY (source, switchover) REFERENCES turnout.switchover(source, name);

ALTER TABLE ONLY turnout.switchover
    ADD CONSTRAINT switchover_source_fkey FOREIGN KEY (source) REFERENCES turnout.source(name);

ALTER TABLE ONLY turnout.switchover
    ADD CONSTRAINT switchover_topic_fkey FOREIGN KEY (topic) REFERENCES turnout.topic(name);
