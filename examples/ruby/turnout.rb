# frozen_string_literal: true

# Turnout from Ruby: the contract of docs/other-languages.md in a few SQL statements. It needs only the `pg` gem (Debian's
# ruby-pg). Copy it into your service: a Rails app hands in `ActiveRecord::Base.connection.raw_connection`.
require 'base64'
require 'digest'
require 'json'
require 'pg'

module Turnout
  # Another transaction stood in the way, or the switchover was closed for calls meanwhile: begin again.
  RETRYABLE = [PG::TRSerializationFailure, PG::TRDeadlockDetected].freeze
  OPEN_CALLS = 'rpc_delivery_open'

  # Somebody else is at the effect, or at its key.
  Busy = Class.new(StandardError)

  module_function

  # Runs the block in a transaction, and again if it has to be. What it does outside the database is done again, too.
  def transaction(connection, attempts: 5)
    tries = 0
    begin
      connection.transaction { |tx| yield tx }
    rescue PG::Error => e
      closed = e.result&.error_field(PG::Result::PG_DIAG_CONSTRAINT_NAME) == OPEN_CALLS
      raise unless closed || RETRYABLE.any? { |kind| e.is_a?(kind) }

      (tries += 1) < attempts ? retry : raise
    end
  end

  # Publishes an event in the caller's open transaction; gives its id. `switchovers`: those to which this code has given its
  # calls. The sweeper (`turnout run`) makes those that are owed.
  def publish(connection, source, type, version, key, data, switchovers: [], headers: nil, id: nil)
    sql = <<~SQL
      select turnout.publish($1, $2, $3::integer, $4, $5::json, $6::jsonb, $7::text[], $8::uuid)
    SQL
    names = PG::TextEncoder::Array.new.encode(switchovers)
    connection.exec_params(sql, [source, type, version, key, JSON.generate(data), headers && JSON.generate(headers), names, id]).getvalue(0, 0)
  end

  # The headers with which a consumer publishes its reply: `publish(…, headers: Turnout.reply_to(effect))`.
  def reply_to(effect) = { 'turnout-reply-to' => effect.fetch('effectKey') }

  # Applies one Kafka record once: the block works in the transaction of the inbox, and is given the event's data, the
  # connection and the effect. Gives what became of it: 'apply', 'observe', 'duplicate' or 'held'. What keeps failing is parked.
  # record: { 'topic', 'partition', 'offset', 'key', 'value', 'headers' => {} }
  # types: those that are handled, ['orders.order-placed', …] (default: all); in_switchover: false for an ordinary consumer
  def consume(connection, consumer, record, attempts: 5, types: nil, in_switchover: true)
    arguments = [consumer, JSON.generate(record), types && PG::TextEncoder::Array.new.encode(types), in_switchover]
    handle = lambda do |after_begin|
      connection.transaction do |tx|
        begun = tx.exec_params('select action, effect from turnout.begin_event($1, $2::jsonb, $3::text[], $4::boolean)', arguments).first
        raise Busy if begun['action'] == 'busy' # Rolled back, so the position stays before the record.

        after_begin.call(tx, begun['effect']) if begun['action'] == 'apply'
        begun['action']
      end
    end
    failures = 0
    begin
      handle.call(->(tx, effect) { finish(tx, effect) { |own| yield JSON.parse(record.fetch('value')), tx, own } })
    rescue Busy
      sleep 0.05
      retry
    rescue PG::ConnectionBad
      raise # An outage says nothing about the event: start again where the position is.
    rescue StandardError => e
      if (failures += 1) < attempts
        sleep 0.05 * (2**failures)
        retry
      end
      park(handle, e)
    end
  end

  # Applies held events whose turn has come; gives how many. To be run every second or so, and after a call was applied.
  def drain(connection, consumer)
    (0..).each do |count|
      taken = nil
      worked = connection.transaction do |tx|
        row = tx.exec_params('select effect, record from turnout.next_held($1)', [consumer]).first or next false
        taken = row['effect']
        finish(tx, taken) { |own| yield JSON.parse(JSON.parse(row['record']).fetch('value')), tx, own }
        true
      end
      return count unless worked
    rescue PG::ConnectionBad
      raise
    rescue StandardError => e
      raise unless taken

      park_held(connection, consumer, taken, e)
    end
  end

  # Lets the block have the effect, and writes its outcome.
  def finish(connection, effect)
    yield JSON.parse(effect)
    connection.exec_params('select turnout.finish_effect($1::jsonb)', [effect])
  end

  # Sets a record aside, in a transaction in which it was begun again.
  def park(handle, error)
    handle.call(->(tx, effect) { tx.exec_params('select turnout.park_effect($1::jsonb, $2)', [effect, error.message]) })
    'held'
  rescue Busy
    sleep 0.05
    retry
  end

  # One that has waited and fails is set aside at once. If another process has taken it meanwhile, that one sees to it.
  def park_held(connection, consumer, taken, error)
    connection.transaction do |tx|
      effect = tx.exec_params('select effect from turnout.next_held($1)', [consumer]).first&.fetch('effect')
      same = effect && JSON.parse(effect)['effectKey'] == JSON.parse(taken)['effectKey']
      tx.exec_params('select turnout.park_effect($1::jsonb, $2)', [effect, error.message]) if same
    end
  end

  # A Rack middleware before the old endpoint: its handler runs in one transaction with the inbox, on the connection in
  # env['turnout.connection'], with env['turnout.effect'] for replies. Without Turnout's headers all is as ever.
  class Endpoint
    # Will never be right, whenever it is asked. All other refusals may be of the moment; taken for good they would lose the effect.
    DEFINITIVE = [400, 404, 410, 422].freeze
    NOT_KEPT = %w[connection content-length date set-cookie transfer-encoding].freeze

    # Carries an answer without an outcome out of the transaction, which is rolled back by it.
    class WithoutOutcome < StandardError
      attr_reader :answer

      def initialize(answer)
        super('no outcome')
        @answer = answer
      end
    end

    # connections: responds to `with { |connection| … }`, as a ConnectionPool does.
    # authenticate: whether a request may carry Turnout's headers; whoever may can claim that an effect has happened.
    def initialize(app, consumer:, ordered:, connections:, authenticate:)
      @app = app
      @consumer = consumer
      @ordered = ordered
      @connections = connections
      @authenticate = authenticate
    end

    def call(env)
      headers = headers_of(env)
      return @app.call(env) if headers.none? { |name, _| name.start_with?('turnout-') }
      return [401, { 'turnout-error' => 'TURNOUT_UNAUTHENTICATED' }, []] unless @authenticate.call(env)

      body = env['rack.input'].read
      env['rack.input'].rewind
      @connections.with { |connection| connection.transaction { |tx| gate(tx, env, headers, Digest::SHA256.hexdigest(body)) } }
    rescue WithoutOutcome => e
      e.answer
    rescue StandardError => e
      warn "turnout: #{e.class}: #{e.message}"
      [503, { 'turnout-error' => 'TURNOUT_HANDLER_FAILED' }, []]
    end

    private

    def gate(connection, env, headers, hash)
      begun = connection.exec_params('select * from turnout.begin_call($1, $2::jsonb, $3, $4::boolean)',
                                     [@consumer, JSON.generate(headers), hash, @ordered]).first
      return stored(begun) if begun['action'] == 'answer'

      connection.exec('savepoint handler')
      effect = JSON.parse(begun['effect'])
      status, answer_headers, body = @app.call(env.merge('turnout.connection' => connection, 'turnout.effect' => effect))
      answer = [status, answer_headers = own_words(answer_headers), body]
      outcome = outcome_of(status, answer_headers) or raise WithoutOutcome, answer
      connection.exec('rollback to savepoint handler') if outcome == 'rejected'
      connection.exec_params('select turnout.finish_effect($1::jsonb, $2, $3::jsonb, $4)',
                             [begun['effect'], outcome, kept(status, answer_headers, body), "the handler answered #{status}"])
      [status, answer_headers.merge('turnout-outcome' => outcome), body]
    end

    def outcome_of(status, headers)
      names = headers.transform_keys(&:downcase)
      # Of another gate's; or of a router that found nobody (x-cascade).
      return if names.key?('turnout-error') || (status == 404 && names['x-cascade'] == 'pass')
      return 'applied' if status.between?(200, 299)

      'rejected' if DEFINITIVE.include?(status)
    end

    # A handler that passes on what another gate said must not speak for this one.
    def own_words(headers)
      headers.reject { |name, _| name.downcase.start_with?('turnout-') && !name.casecmp?('turnout-error') }
    end

    def stored(begun)
      body = begun['encoding'] == 'base64' ? Base64.decode64(begun['body']) : begun['body']
      [begun['status'].to_i, JSON.parse(begun['answer_headers']), [body]]
    end

    def kept(status, headers, body)
      bytes = body.to_a.join
      text = bytes.dup.force_encoding('UTF-8')
      is_text = text.valid_encoding? && !text.include?("\0")
      JSON.generate(status: status, headers: headers.transform_keys(&:downcase).except(*NOT_KEPT),
                    body: is_text ? text : Base64.strict_encode64(bytes), encoding: is_text ? 'text' : 'base64')
    end

    def headers_of(env)
      env.select { |name, _| name.start_with?('HTTP_') }
         .to_h { |name, value| [name.delete_prefix('HTTP_').downcase.tr('_', '-'), value] }
    end
  end

  # Reads partitions with kcat (Debian's kcat), from where the database says they are: the position moves in the transaction of
  # the effect, so nothing is skipped, whenever a process dies. For a client library with groups see examples/ruby/README.md.
  class KafkaReader
    def initialize(brokers, topic)
      @brokers = brokers
      @topic = topic
    end

    # Yields the records of a partition, in order, for ever. `from` ('beginning' or an offset) counts until there is a position.
    def each(connection, consumer, partition, from:)
      at = connection.exec_params('select next_offset from turnout.position where consumer = $1 and topic = $2 and partition = $3',
                                  [consumer, @topic, partition]).first
      # Where there is setpriv (Linux), kcat ends with this process, however it ends.
      guard = File.executable?('/usr/bin/setpriv') ? ['/usr/bin/setpriv', '--pdeathsig', 'TERM'] : []
      command = [*guard, 'kcat', '-C', '-q', '-u', '-J', '-b', @brokers, '-t', @topic, '-p', partition.to_s,
                 '-o', at ? at['next_offset'] : from.to_s, '-X', 'topic.auto.offset.reset=error']
      IO.popen(command) do |kcat|
        @pid = kcat.pid
        kcat.each_line { |line| yield record_of(JSON.parse(line)) }
      end
      raise "kcat ended: #{$?}"
    end

    def stop
      Process.kill('TERM', @pid) if @pid
    rescue Errno::ESRCH
      nil # It has ended by itself.
    end

    private

    def record_of(message)
      { 'topic' => message['topic'], 'partition' => message['partition'], 'offset' => message['offset'], 'key' => message['key'],
        'value' => message['payload'], 'headers' => (message['headers'] || []).each_slice(2).to_h }
    end
  end
end
