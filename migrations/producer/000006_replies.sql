-- Replies: what consumers answer with an event of their own, kept at the producer until whoever waits has asked for it.

-- One row an effect whose reply somebody may wait for, written in the transaction of its event: one that is not there was
-- never published, or was rolled back. A reply to anything else is left alone, so a reply topic may serve several sources.
create table turnout.reply (
  effect_key text primary key,
  switchover text not null,
  route      text not null check (route in ('rpc', 'event')),
  -- The type of the event that answers. Null: whoever publishes didn't say, and any does.
  reply_type text,
  -- What became of a call, or what a reply event said. Both are first come, first kept.
  outcome    text check (outcome in ('applied', 'rejected', 'skipped', 'dead', 'duplicate')),
  -- {"status", "body"}: what the old endpoint answered. Null: it was too large, or nobody of this version heard it.
  answer     json,
  event_id   uuid,
  event_type text,
  data       json,
  at         timestamptz not null default clock_timestamp(),
  settled_at timestamptz
) with (fillfactor = 70);

create index reply_at on turnout.reply (at);

-- Says, in the transaction of their events, that replies to these effects may be asked for. TypeScript does it by itself where a
-- switchover has a `reply`; from other languages it goes beside turnout.publish. Again, it does nothing.
--   reply_types  which event type answers each; another one that names the effect answers nothing
create function turnout.await_replies(effect_keys text[], switchovers text[], routes text[], reply_types text[] default null)
returns void
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  insert into turnout.reply (effect_key, switchover, route, reply_type)
    select e.effect_key, e.switchover, e.route, e.reply_type
    from unnest(await_replies.effect_keys, await_replies.switchovers, await_replies.routes, await_replies.reply_types)
         as e (effect_key, switchover, route, reply_type)
    order by e.effect_key
    on conflict (effect_key) do nothing
$$;

-- Keeps what a reply event says; false: nobody asked for it, it is of another type, or there is a reply already.
create function turnout.record_reply(effect_key text, event_id uuid, event_type text, data json)
returns boolean
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
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

-- Ends a call that is owed: its row goes and its answer stays, in one statement. Whoever waits elsewhere finds it here.
-- Without an outcome only the row goes: what came as an event is answered by one.
create function turnout.settle_call(effect_key text, outcome text, answer json)
returns void
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  with settled as (
    delete from turnout.rpc_delivery d where d.effect_key = settle_call.effect_key
  )
  update turnout.reply r
    set outcome = settle_call.outcome, answer = settle_call.answer, settled_at = coalesce(r.settled_at, clock_timestamp())
    where r.effect_key = settle_call.effect_key and r.outcome is null and settle_call.outcome is not null
$$;

-- What is known of an effect, for a status URL. No row: unknown here.
create function turnout.reply_status(effect_keys text[])
returns table (effect_key text, switchover text, route text, outcome text, answer text, event_id uuid, event_type text, data text, is_owed boolean)
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select r.effect_key, r.switchover, r.route, r.outcome, r.answer::text, r.event_id, r.event_type, r.data::text,
         exists (select from turnout.rpc_delivery d where d.effect_key = r.effect_key)
  from turnout.reply r
  where r.effect_key = any (reply_status.effect_keys)
$$;

-- Deletes what is older than that, replied or not; at most `most`, returns how many.
create function turnout.delete_old_replies(older_than interval, most integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
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

revoke all on turnout.reply from public;
revoke all on function turnout.await_replies(text[], text[], text[], text[]) from public;
revoke all on function turnout.record_reply(text, uuid, text, json) from public;
revoke all on function turnout.settle_call(text, text, json) from public;
revoke all on function turnout.reply_status(text[]) from public;
revoke all on function turnout.delete_old_replies(interval, integer) from public;
