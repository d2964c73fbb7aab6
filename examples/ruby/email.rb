# frozen_string_literal: true

# The consuming service: its old endpoint behind Turnout's gate, and the handler of the event, over one inbox.
# DATABASE_URL, KAFKA_BROKERS, KAFKA_TOPIC, KAFKA_PARTITIONS, KAFKA_FROM (beginning), SERVICE_TOKEN
require 'stringio'
require 'webrick'
require_relative 'turnout'

url = ENV.fetch('DATABASE_URL')
$stdout.sync = true

# As the gem connection_pool, in a few lines.
class Connections
  def initialize(url, size) = @free = size.times.each_with_object(Queue.new) { |_, free| free << PG.connect(url) }

  def with
    connection = @free.pop
    yield connection
  ensure
    @free << connection
  end
end

send_mail = lambda do |connection, order, how|
  connection.exec_params('insert into effects (order_id, step, how) values ($1, $2, $3)', [*order.values_at('orderId', 'step'), how])
end

# The old endpoint, unchanged but for its connection.
confirmations = lambda do |env|
  order = JSON.parse(env['rack.input'].read)
  next [422, {}, ['no such step']] if order['step'].negative?

  send_mail.call(env['turnout.connection'] || PG.connect(url), order, 'rpc')
  [201, { 'content-type' => 'application/json' }, [JSON.generate(sent: order['orderId'])]]
end
app = Turnout::Endpoint.new(
  confirmations,
  consumer: 'email', ordered: true, connections: Connections.new(url, 4),
  authenticate: ->(env) { env['HTTP_AUTHORIZATION'] == "Bearer #{ENV.fetch('SERVICE_TOKEN')}" }
)

# As any Rack server; Debian's ruby-webrick needs no gem.
server = WEBrick::HTTPServer.new(Port: 0, BindAddress: '127.0.0.1', AccessLog: [], Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN))
server.mount_proc('/confirmations') do |request, response|
  env = request.meta_vars.merge('rack.input' => StringIO.new(request.body || ''))
  response.status, headers, body = app.call(env)
  headers.each { |name, value| response[name] = value }
  response.body = body.join
end

# The handler of the event, one thread a partition, and one for what has waited for its turn.
topic = ENV.fetch('KAFKA_TOPIC')
handle = ->(order, connection, _effect) { send_mail.call(connection, order, 'event') }
readers = Integer(ENV.fetch('KAFKA_PARTITIONS')).times.map do |partition|
  reader = Turnout::KafkaReader.new(ENV.fetch('KAFKA_BROKERS'), topic)
  Thread.new do
    connection = PG.connect(url)
    reader.each(connection, 'email', partition, from: ENV.fetch('KAFKA_FROM', 'beginning')) do |record|
      Turnout.consume(connection, 'email', record, &handle)
    end
  end.tap { |thread| thread.abort_on_exception = true }
  reader
end
Thread.new do
  connection = PG.connect(url)
  loop do
    Turnout.drain(connection, 'email', &handle)
    sleep 0.2
  end
end.abort_on_exception = true

trap('TERM') do
  readers.each(&:stop)
  exit!(true)
end
puts "listening #{server.config[:Port]}"
server.start
